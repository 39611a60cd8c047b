"""What symbols do to the costs of others: context models look at them before they tell what comes next."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pillow_lic.entropy.exact import ACTIVATION_BITS
from pillow_lic.models.context.schedule import VOLUME
from pillow_lic.models.hyperprior import gaussian_bits
from pillow_lic.models.loading import Model
from pillow_lic.symbols import CodedTile, quality_tensor

HINDSIGHT = 4
"""Steps of a descent between looks at what symbols do to the costs of those coded after them, which changes slowly."""


def influence(model: Model, tile: CodedTile, context: str, coded: Tensor) -> Callable[[Tensor], Tensor] | None:
    """A function of the points (n,) of a tile's ``coded`` latents (M, h, w): the bits that they take together.

    Its gradient is that of the others' costs alone: each latent's distance from its mean counts as it is, and only what
    the context model predicts changes.  None where nothing is predicted, and for the context over volumes.
    """
    if context in ("none", VOLUME):
        return None
    network = model.float_context(context, coded.device)
    index, hidden = tile.priors.index[None].float(), tile.priors.hidden[None].float() * 2.0**-ACTIVATION_BITS
    quality = quality_tensor(tile.quality_code, coded.device)

    def bits(points: Tensor) -> Tensor:
        symbols = points.new_zeros(coded.shape).masked_scatter(coded, points)[None]
        shift, refined = network(symbols, index, hidden, quality)
        return gaussian_bits((symbols.detach() - shift)[0][coded], refined[0][coded]).sum()

    return bits


def slope(bits: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """How many bits a step of each of the points (n,) costs the others."""
    leaf = points.detach().requires_grad_(True)
    (found,) = torch.autograd.grad(bits(leaf), leaf)
    return found

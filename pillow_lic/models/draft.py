"""Pictures at 1/4 and 1/8 straight from latents, by one 3x3 convolution.

The synthesis transform works at 1/8 resolution, so asking it for less saves little.  What a quarter of the
picture's size shows depends almost linearly on the latents around it, though: a convolution fitted to means of
what the synthesis transform shows (:mod:`pillow_lic.training.draft`) takes a hundredth of its time.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pillow_lic.models.beside import load_beside, save_beside
from pillow_lic.models.transforms import LATENT_STRIDE, means_of_blocks

SUFFIX = ".draft"

FITTED_SCALE = 4
"""The convolution gives pixels at 1/4; those at 1/8 are their means."""

SIZE = 3

CHANNELS = 128
"""The first channels of y, the lowest frequencies, which a draft reads, and all that is coded no later: what the rest
adds at 1/4 lies 50 dB down."""

CHANNELS_IF_SMALL = 64
SMALL = 12
"""Where no more is shown than 1/12 of the width: pixels there are means of so many that little of the rest is seen.
The first 24 alone lack what saturated colours need (docs/decisions.md)."""


def channels_for(shown: float) -> int:
    """How many channels of y to read for a draft that will be shown at 1/``shown``."""
    return CHANNELS_IF_SMALL if shown >= SMALL else CHANNELS


class Draft:
    """y (B, M, h, w) in the synthesis transform's units -> pixels (B, 3, 16 h / scale, 16 w / scale), unclamped.

    Looks at the first ``channels`` of y only.
    """

    margin = SIZE // 2
    """Latent positions around a tile that its pixels depend on."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        n = LATENT_STRIDE // FITTED_SCALE
        if weight.shape[0] != 3 * n * n or weight.shape[2:] != (SIZE, SIZE) or bias.shape != weight.shape[:1]:
            raise ValueError("not a convolution that makes drafts")
        self.weight, self.bias = weight, bias
        self.channels = weight.shape[1]

    def __call__(self, y: Tensor, scale: int) -> Tensor:
        """Pixels at 1/``scale``, which is 4 or 8."""
        weight, bias = self.weight, self.bias
        if scale > FITTED_SCALE:
            weight, bias = (means_of_blocks(t, scale // FITTED_SCALE) for t in (weight, bias))
        pixels = F.conv2d(y[:, : self.channels], weight, bias, padding=self.margin)
        return F.pixel_shuffle(pixels, LATENT_STRIDE // scale)

    def save(self, model: Path, identity: bytes) -> None:
        """Write the convolution beside its model."""
        save_beside(model, SUFFIX, identity, {"weight": self.weight, "bias": self.bias})


def load_draft(model: Path, identity: bytes, latents: int, device: torch.device) -> Draft | None:
    """The draft that lies beside a model with so many latent channels; None if there is none or it is another
    model's.  Raises ``ModelError`` if it is damaged.
    """

    def made(tensors: dict[str, Tensor]) -> Draft:
        weight, bias = tensors["weight"], tensors["bias"]
        if weight.dim() != 4 or not 1 <= weight.shape[1] <= latents:
            raise ValueError(f"a draft of weights {tuple(weight.shape)} for a model of {latents} latent channels")
        return Draft(weight.to(device), bias.to(device))

    return load_beside(model, SUFFIX, identity, made)

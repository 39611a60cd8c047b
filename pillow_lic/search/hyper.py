"""Hyperlatents that say more: z refined by gradient descent on all bits, before the symbols of y are searched.

Yang, Bamler, Mandt (2020) refine y and z together.  Here z goes first, and the transforms stay out of it: what y costs
follows from z alone, and so does the distortion, but for what the decoder makes of several errors together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pillow_lic.entropy.exact import GAIN_BITS, MEAN_BITS
from pillow_lic.models.context.network import ContextModel
from pillow_lic.models.context.schedule import HYPER, VOLUME
from pillow_lic.models.hyperprior import gaussian_bits, scale_of
from pillow_lic.models.loading import Model
from pillow_lic.quantizers.adaptive import Priors
from pillow_lic.search.descent import descend
from pillow_lic.search.influence import HINDSIGHT
from pillow_lic.search.look import curvature
from pillow_lic.search.relax import softly_rounded
from pillow_lic.symbols import CodedTile, quality_tensor

HYPER_STEPS = (0, 0, 0, 20, 20, 40, 60, 100, 200, 200)
"""Steps of each effort."""

RATE = 0.03
"""Adam's learning rate in steps of z; see docs/decisions.md."""


def better_z(
    model: Model,
    y: Tensor,
    start: NDArray[np.float64],
    tile: CodedTile,
    context: str,
    steps: int,
    on_step: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """z in steps (N, h, w), to be rounded, that makes a tile smaller than ``start`` does.

    ``y`` (1, M, H, W) are its latents in nominal steps, ``tile`` the symbols that follow from ``start``.  Deterministic
    on one machine.
    """
    judge = _Judge.of(model, y, tile, context)
    noise = min(1.0, max(0.0, (steps - 20) / 40))

    def loss(values: Tensor, step: int, temperature: float, generator: torch.Generator) -> Tensor:
        low, share = softly_rounded(values, temperature, noise * (1 - step / steps), generator)
        return judge(low + share, look=step % HINDSIGHT == 0)

    begin = torch.from_numpy(start).to(y.device, torch.float32)
    found: NDArray[np.float64] = descend(begin, loss, steps, RATE, on_step).cpu().double().numpy()
    return found


@dataclass
class _Judge:
    """What z (N, h, w) in steps costs in bits: its own, those of y (1, M, H, W), and distortion.

    index, coded   of z, (1, N, h, w)
    gain, mean     z's steps and means, (1, N, 1, 1)
    factor, level  how many times finer y's steps are, and by how many indices; (H, W) or a number
    prior          z's context model, or None
    context        y's context model, or None
    """

    model: Model
    y: Tensor
    quality: Tensor
    index: Tensor
    coded: Tensor
    gain: Tensor
    mean: Tensor
    factor: Tensor | float
    level: Tensor | float
    prior: ContextModel | None
    context: ContextModel | None
    _seen: tuple[Tensor, ...] = field(default=())

    @classmethod
    def of(cls, model: Model, y: Tensor, tile: CodedTile, context: str) -> _Judge:
        """All that does not depend on z."""
        device = y.device
        gain, mean, _ = model.hyper_synthesis(device).z_prior(tile.quality_code)
        index = torch.from_numpy(tile.z_index.astype(np.float32)).to(device)[None]
        column = (1, -1, 1, 1)
        predicted = context not in ("none", VOLUME)
        return cls(
            model,
            y,
            quality_tensor(tile.quality_code, device),
            index,
            index >= model.tables.skip,
            torch.from_numpy(gain * 2.0**-GAIN_BITS).to(device, torch.float32).view(column),
            torch.from_numpy(mean * 2.0**-MEAN_BITS).to(device, torch.float32).view(column),
            *_finer(tile.priors),
            model.float_context(HYPER, device) if context != "none" and model.hyper is not None else None,
            model.float_context(context, device) if predicted else None,
        )

    def __call__(self, z: Tensor, *, look: bool) -> Tensor:
        """Bits of z and of y, and distortion in bits; ``look`` at the context model anew."""
        z = torch.where(self.coded, z[None], 0.0)
        network = self.model.float_hyper_synthesis(z.device)
        height, width = self.y.shape[2:]
        found = network((z + self.mean) * self.gain, self.quality)
        mean, index, hidden = (x[:, :, :height, :width] for x in found)
        return self._bits_of_z(z) + self._cost_of_y((self.y - mean) * self.factor, index + self.level, hidden, look)

    def _bits_of_z(self, z: Tensor) -> Tensor:
        shift, index = z.new_zeros(()), self.index
        if self.prior is not None:
            shift, index = self.prior(z, index, z.new_zeros(1, 0, *z.shape[2:]), self.quality)
        return (gaussian_bits(z - shift, index) * self.coded).sum()

    def _cost_of_y(self, steps: Tensor, index: Tensor, hidden: Tensor, look: bool) -> Tensor:
        """For y so many steps from its means.  Gradients pass roundings by."""
        index = index.clamp(0, len(self.model.tables) - 1)
        coded = index >= self.model.tables.skip - 0.5
        whole = steps.detach().round() * coded
        symbols = torch.where(coded, steps + (whole - steps).detach(), 0.0)
        shift, refined, further = symbols.new_zeros(()), index, symbols.new_zeros(())
        if self.context is not None:
            if look:
                self._seen = _seen(self.context, symbols, index, hidden, self.quality, coded)
            ratio, change, by_symbols, by_hidden = self._seen
            shift, refined = ratio * scale_of(index), index + change
            further = (by_symbols * symbols).sum() + (by_hidden * hidden).sum()
        curves = curvature((index.detach() - self.level).flatten()).view_as(index)
        lost = (curves * (steps - whole).square()).sum()
        return (gaussian_bits(symbols - shift, refined) * coded).sum() + further + lost


def _seen(
    network: ContextModel, symbols: Tensor, index: Tensor, hidden: Tensor, quality: Tensor, coded: Tensor
) -> tuple[Tensor, ...]:
    """What a context model says, as shifts in scales and changes of the index, and how many bits what it sees does."""
    symbols, index = symbols.detach().requires_grad_(True), index.detach()
    hidden = hidden.detach().requires_grad_(True)
    shift, refined = network(symbols, index, hidden, quality)
    bits = (gaussian_bits(symbols.detach() - shift, refined) * coded).sum()
    slopes = torch.autograd.grad(bits, (symbols, hidden))
    return (shift / scale_of(index)).detach(), (refined - index).detach(), *slopes


def _finer(priors: Priors) -> tuple[Tensor | float, Tensor | float]:
    """How many times finer than nominal the steps of y are meant to be, and by how many indices."""
    if priors.fineness is None:
        return 1.0, 0.0
    finer = priors.fineness.clone()  # tensors made in inference mode have no gradients, copies of them do
    return finer, priors.level

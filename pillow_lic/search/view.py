"""A tile as its decoder will show it, as a function of its symbols."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pillow_lic.distortions import DISTORTIONS, MS_SSIM_SIDE, WEIGHTS
from pillow_lic.models.hyperprior import limited


@dataclass(frozen=True)
class TileView:
    """Decodes a tile's symbols and weighs what is lost.

    synthesis     latents (1, M, h, w) in the transform's units -> pixels (1, 3, 16 h, 16 w)
    pixels        of the tile and a margin, (1, 3, H, W) in -127.5...127.5; H and W end where the picture does
    around        latents in steps of the tile and its margin, (1, M, h, w); the tile's own are replaced
    top, left     where the tile lies in them
    mean, coded   of the tile's own latents (M, th, tw): float steps, and which are coded at all
    inverse_gain  (M, 1, 1)
    factor        (h, w) or (M, h, w): how many times finer than nominal the tile's own steps are, or None
    fineness      (h, w): how many times finer they are meant to be, or None
    weight        lambda: bits a pixel for each unit of mean distortion; of squared errors more where steps are finer
    measure       one of :data:`DISTORTIONS`
    grey          whether the channels' mean is what will be seen
    """

    synthesis: Callable[[Tensor], Tensor]
    pixels: Tensor
    around: Tensor
    top: int
    left: int
    mean: Tensor
    coded: Tensor
    inverse_gain: Tensor
    weight: float
    measure: str
    factor: Tensor | None = None
    fineness: Tensor | None = None
    grey: bool = False

    @property
    def measurable(self) -> bool:
        """Whether the distortion is defined for a tile of this size, and can count more where steps are finer."""
        return self.measure != "ms-ssim" or (self.fineness is None and min(self.pixels.shape[2:]) >= MS_SSIM_SIDE)

    def distortion(self, values: Tensor) -> Tensor:
        """Distortion in bits for the values (n,) of the coded latents, in the order of ``coded``."""
        symbols = torch.zeros_like(self.mean).masked_scatter(self.coded, values)
        h, w = self.mean.shape[1:]
        below, right = self.around.shape[2] - self.top - h, self.around.shape[3] - self.left - w
        place = (self.left, right, self.top, below)
        steps = symbols + self.mean
        own = torch.nn.functional.pad(steps if self.factor is None else steps / self.factor, place)
        inside = torch.nn.functional.pad(torch.ones_like(self.mean[:1], dtype=torch.bool), place)
        latents = torch.where(inside, own, self.around[0]) * self.inverse_gain
        output = self.synthesis(latents[None].contiguous(memory_format=torch.channels_last))
        shown, pixels = self._shown(output.float()), self.pixels
        height, width = pixels.shape[2:]
        if self.fineness is None:
            return DISTORTIONS[self.measure](shown, pixels).sum() * (self.weight * height * width)
        # What the encoder was asked for: squared errors count by the square of the steps' fineness.
        spread = torch.nn.functional.pad(self.fineness, place, value=1.0)[None, None].square()
        asked = torch.nn.functional.interpolate(spread, size=output.shape[2:])[:, :, :height, :width]
        return (asked * WEIGHTS[self.measure](shown, pixels) * (shown - pixels).square()).sum() * (self.weight / 3)

    def _shown(self, output: Tensor) -> Tensor:
        """What will be seen of synthesised pixels: those inside the picture, no brighter than white."""
        if self.grey:
            output = output.mean(dim=1, keepdim=True).expand_as(output)
        return limited(output[:, :, : self.pixels.shape[2], : self.pixels.shape[3]], -127.5, 127.5)

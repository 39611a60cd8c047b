"""A context model over the volume of latents (Mentzer et al. 2018): one masked 3-D convolution for all.

A latent sees those before it in its own channel, and in the channels before, as far as the kernel reaches.
What may be seen is decided by *waves*, channel + column + 3 row: a tap whose wave is lower than the latent's
is known, so that all latents of a wave are decoded at once.

As in :mod:`pillow_lic.models.context.network` everything is in units of the predicted scale, and a linear
window of the latent's own channel stands beside the network.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pillow_lic.models.context.network import RATIO_LIMIT, QualityLinear
from pillow_lic.models.context.schedule import ContextShape
from pillow_lic.models.hyperprior import HYPER_SLOPE, INDEX_GAIN, SCALES, SKIP, scale_of
from pillow_lic.models.transforms import Architecture, at_quality

Grid = TypeVar("Grid", Tensor, NDArray[np.int32])

REACH = 2
"""Rows and columns that the kernel reaches to each side in the latent's own channel; 1 in the others."""

NEAR, DEPTH = 8, 16
"""Channels back that the kernel reaches; beyond ``NEAR`` it is one position wide."""


class Tap(NamedTuple):
    """A place of the kernel: so many channels back, rows down and columns right of the latent."""

    back: int
    row: int
    column: int


def wave_of(channel: Grid, row: Grid, column: Grid) -> Grid:
    """When latents are decoded: those of one number together."""
    return channel + column + 3 * row


def taps() -> tuple[Tap, ...]:
    """The kernel's places whose waves come before the latent's own, its own channel's first."""
    own = [Tap(0, *at) for at in product(range(-REACH, REACH + 1), repeat=2)]
    near = [Tap(back, *at) for back in range(1, NEAR + 1) for at in product((-1, 0, 1), repeat=2)]
    far = [Tap(back, 0, 0) for back in range(NEAR + 1, DEPTH + 1)]
    return tuple(t for t in (*own, *near, *far) if t.column + 3 * t.row - t.back < 0)


TAPS = taps()
OWN = sum(t.back == 0 for t in TAPS)


def offsets(rows: int, columns: int) -> Tensor:
    """Distances of the taps in a flat volume of so many padded rows and columns."""
    return torch.tensor([-(t.back * rows - t.row) * columns + t.column for t in TAPS], device="cpu")


def padded(volume: Tensor) -> Tensor:
    """(..., M, h, w) with zeros wherever the kernel reaches past an edge."""
    return F.pad(volume, (REACH, REACH, REACH, REACH, DEPTH, 0))


class VolumeContext(nn.Module):
    """Shift of the mean and of the scale index of every latent that files code, from those before it."""

    def __init__(self, shape: ContextShape, arch: Architecture) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.value_window = nn.Parameter(torch.zeros(arch.latents, OWN))
        self.size_window = nn.Parameter(torch.zeros(arch.latents, OWN))
        self.position = QualityLinear(arch.hyper_channels, width, gain=0.5)
        self.channel = nn.Parameter(torch.zeros(arch.latents, width))
        self.rung = nn.Parameter(torch.zeros(SCALES, width))
        self.enter = QualityLinear(2 * len(TAPS) + 2, width)
        self.reduce = QualityLinear(width, width)
        self.expand = QualityLinear(width, width, gain=0.0)
        self.leave = QualityLinear(width, 2, gain=0.05)

    def forward(self, symbols: Tensor, index: Tensor, hidden: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Shift of the means in steps and refined index, (B, M, h, w) each, from the true symbols."""
        h, w = symbols.shape[2:]
        scale = scale_of(index)
        ratio = padded((symbols / scale.detach()).clamp(-RATIO_LIMIT, RATIO_LIMIT))
        batch, channel, row, column = (index.round() >= SKIP).nonzero(as_tuple=True)
        depth, rows, columns = ratio.shape[1:]
        place = ((batch * depth + channel + DEPTH) * rows + row + REACH) * columns + column + REACH
        seen = ratio.flatten()[place[:, None] + offsets(rows, columns).to(place.device)]
        sizes = seen.abs()
        value = (seen[:, :OWN] * self.value_window[channel]).sum(dim=1)
        size = (sizes[:, :OWN] * self.size_window[channel]).sum(dim=1)
        place = (batch * h + row) * w + column
        positions = self.position(hidden.permute(0, 2, 3, 1).flatten(1, 2), quality).flatten(0, 1)
        rungs = index.detach()[batch, channel, row, column].round().long().clamp(0, SCALES - 1)

        def layer(linear: QualityLinear, x: Tensor) -> Tensor:
            bias = at_quality(linear.bias, quality).to(x.dtype)
            return F.linear(x, linear.weight.flatten(1)) + bias.index_select(0, batch)

        x = layer(self.enter, torch.cat([seen, sizes, value[:, None], size[:, None]], dim=1))
        x = x + positions.index_select(0, place) + self.channel.index_select(0, channel)
        x = F.leaky_relu(x + self.rung.index_select(0, rungs), HYPER_SLOPE)
        x = x + layer(self.expand, F.leaky_relu(layer(self.reduce, x), HYPER_SLOPE))
        out = layer(self.leave, F.leaky_relu(x, HYPER_SLOPE)).float()
        where = (batch, channel, row, column)
        shift = torch.zeros_like(index).index_put(where, out[:, 0] + value.float())
        change = torch.zeros_like(index).index_put(where, (out[:, 1] + size.float()) * INDEX_GAIN)
        return shift * scale, index + change

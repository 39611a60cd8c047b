"""Context models in the float form that is trained.

Everything is in units of the predicted scale: symbols come in as r = q / scale, limited to +-4, and
a network answers with a shift of the mean in scales and a shift of the scale's index.  Each channel
is predicted from its own window (5x5, linear) and corrected by a small network that sees all the
windows' results, the known channels of the position itself and h_s's last hidden layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pillow_lic.models.context.schedule import TAPS, ContextShape, Unit, View, channels_of, units_of, view_of
from pillow_lic.models.hyperprior import HYPER_SLOPE, INDEX_GAIN, scale_of
from pillow_lic.models.transforms import QUALITIES, Architecture, at_quality

RATIO_LIMIT = 4.0
"""Largest magnitude of r = q / scale that a context model sees."""

WINDOWS = ("value_window", "size_window")
"""A unit's windows over r and over its magnitude."""


class QualityLinear(nn.Module):
    """(B, P, in) -> (B, P, out) with a bias that depends on the quality."""

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1) * gain * math.sqrt(2 / inputs))
        self.bias = nn.Parameter(torch.zeros(QUALITIES, outputs))

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        out = F.linear(x, self.weight.flatten(1))
        return out + at_quality(self.bias, quality)[:, None, :].to(out.dtype)


class UnitNetwork(nn.Module):
    """Predicts one unit's latents from what it sees."""

    mask: Tensor

    def __init__(self, unit: Unit, view: View, width: int, hyper_channels: int) -> None:
        super().__init__()
        self.unit, self.view = unit, view
        mask = torch.zeros(view.spatial, TAPS * TAPS)
        for channel, taps in enumerate(view.taps):
            mask[channel, list(taps)] = 1
        self.register_buffer("mask", mask, persistent=False)
        self.value_window = nn.Parameter(torch.zeros(view.spatial, TAPS * TAPS))
        self.size_window = nn.Parameter(torch.zeros(view.spatial, TAPS * TAPS))
        self.enter = QualityLinear(hyper_channels + view.inputs, width)
        self.reduce = QualityLinear(width, width)
        self.expand = QualityLinear(width, width, gain=0.0)
        self.leave = QualityLinear(width, 2 * (unit.last - unit.first), gain=0.05)

    def forward(self, ratio: Tensor, hidden: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """r (B, M, h, w) and h_s's hidden layer -> shift in scales, shift of the index: (B, P, channels)."""
        h, w = ratio.shape[2:]
        at = positions(h, w, self.unit.parity, ratio.device)
        seen = ratio[:, : self.view.spatial]
        sizes = seen.abs()
        values = _pick(self._window(seen, self.value_window), at)
        spreads = _pick(self._window(sizes, self.size_window), at)
        centre = [_pick(x[:, slice(*self.view.centre)], at) for x in (seen, sizes)]
        x = torch.cat([_pick(hidden, at), values, spreads, *centre], dim=2)
        x = F.leaky_relu(self.enter(x, quality), HYPER_SLOPE)
        x = x + self.expand(F.leaky_relu(self.reduce(x, quality), HYPER_SLOPE), quality)
        shift, index = self.leave(F.leaky_relu(x, HYPER_SLOPE), quality).float().chunk(2, dim=2)
        own = slice(self.unit.first, min(self.unit.last, self.view.spatial))
        missing = self.unit.last - max(own.stop, own.start)
        shift = shift + F.pad(values[:, :, own].float(), (0, missing))
        index = index + F.pad(spreads[:, :, own].float(), (0, missing))
        return shift, index * INDEX_GAIN

    def _window(self, x: Tensor, weights: Tensor) -> Tensor:
        kernel = (weights * self.mask).reshape(-1, 1, TAPS, TAPS)
        # bfloat16 would take twice the time on CPUs, for windows of one channel each.
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x, kernel, padding=TAPS // 2, groups=self.view.spatial)


class ContextModel(nn.Module):
    """All units of one context model of y, or that of z (:data:`HYPER`).

    ``order`` has the channels as its division puts them, ``back`` undoes it.
    """

    order: Tensor
    back: Tensor

    def __init__(self, name: str, shape: ContextShape, arch: Architecture) -> None:
        super().__init__()
        self.shape = shape
        channels, hidden = channels_of(name, arch)
        self.units = units_of(name, channels, shape)
        order = torch.tensor(shape.order(channels))
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        views = [view_of(u, self.units) for u in self.units]
        self.networks = nn.ModuleDict(
            {
                str(n): UnitNetwork(unit, view, shape.width, hidden)
                for n, (unit, view) in enumerate(zip(self.units, views, strict=True))
                if view.spatial
            }
        )

    def forward(self, symbols: Tensor, index: Tensor, hidden: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Shift of the means in steps and refined index, (B, M, h, w) each, from the true symbols.

        Everything is computed at once, each unit from the symbols it will know.
        """
        batch, channels, h, w = symbols.shape
        scale = scale_of(index)
        ordered = self.shape.groups > 1
        ratio = (symbols / scale.detach()).clamp(-RATIO_LIMIT, RATIO_LIMIT)
        ratio = (ratio[:, self.order] if ordered else ratio).contiguous(memory_format=torch.channels_last)
        shifts = symbols.new_zeros(batch, h * w, channels)
        changes = torch.zeros_like(shifts)
        for n, unit in enumerate(self.units):
            if str(n) in self.networks:
                at = positions(h, w, unit.parity, symbols.device)[:, None]
                own = torch.arange(unit.first, unit.last, device=symbols.device)
                shifts[:, at, own], changes[:, at, own] = self.networks[str(n)](ratio, hidden, quality)
        if ordered:
            shifts, changes = shifts[:, :, self.back], changes[:, :, self.back]
        shift, change = (x.mT.reshape(batch, channels, h, w) for x in (shifts, changes))
        return shift * scale, index + change


def positions(h: int, w: int, parity: int | None, device: torch.device) -> Tensor:
    """Flat positions of an h x w grid with a parity of row + column, in raster order.

    By a formula, not by looking for them: compilers want to know how many there are.
    """
    if parity is None:
        return torch.arange(h * w, device=device)
    if w % 2:
        return torch.arange(parity, h * w, 2, device=device)
    pairs = torch.arange(h * w // 2, device=device)
    return 2 * pairs + (torch.div(pairs, w // 2, rounding_mode="floor") + parity) % 2


def _pick(x: Tensor, at: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, P, C) at flat positions."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)[:, at]

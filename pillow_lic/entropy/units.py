"""The networks of context models in integers.

All that enters a product is an integer of at most eight bits, and every sum stays below 2**24.
Float32 arithmetic is then exact in any order, and stays exact where a library rounds the factors of
float32 products to bfloat16 or TF32: eight bits fit both, and sums are kept in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from pillow_lic.entropy.ladder import FRACTION, SHIFT_BITS
from pillow_lic.entropy.layers import FEW, IntegerLayer
from pillow_lic.entropy.passes import MARGIN, Places, Wave
from pillow_lic.models.context.schedule import TAPS, Unit, View
from pillow_lic.models.hyperprior import INDEX_GAIN
from pillow_lic.models.transforms import QUALITIES

ACTIVATION_LIMIT = 255
WEIGHT_LIMIT = 127
EXACT = 2.0**24
SHIFT_LIMIT = 8.0 * 2**SHIFT_BITS
CHANGE_LIMIT = 32.0 * 2**SHIFT_BITS
LAYERS = ("enter", "reduce", "expand", "leave")


def load_layer(tensors: Mapping[str, Tensor], name: str, device: torch.device) -> IntegerLayer:
    """A layer of a model's context; ``ValueError`` if its sums might not be exact."""
    weight, bias, shift = (tensors[f"{name}.{part}"] for part in ("weight", "bias", "shift"))
    if weight.is_floating_point() or bias.is_floating_point() or shift.is_floating_point():
        raise ValueError(f"the model's layer {name} does not consist of integers")
    shifts = shift.to(torch.int64).numpy()
    if shifts.min() < 0 or shifts.max() > 23 or int(weight.to(torch.int64).abs().max()) > WEIGHT_LIMIT:
        raise ValueError(f"the model's layer {name} is out of range")
    if weight.dim() != 2 or bias.shape != (QUALITIES, *shift.shape) or shift.shape != weight.shape[:1]:
        raise ValueError(f"the model's layer {name} has the wrong shape")
    starts = bias.to(torch.int64).numpy() + ((1 << shifts) >> 1)
    sums = weight.to(torch.int64).abs().sum(dim=1).numpy() * ACTIVATION_LIMIT
    if float((sums + np.abs(starts.astype(np.float64)).max(axis=0)).max()) >= EXACT:
        raise ValueError(f"the model's layer {name} is not exact in float32")
    return IntegerLayer(weight.to(device), starts, shifts, ACTIVATION_LIMIT, torch.float32)


class ExactUnit:
    """One unit's network: shifts of means (in scales) and of scale indices, 8 fraction bits each."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str, unit: Unit, view: View, device: torch.device) -> None:
        self.unit, self.view = unit, view
        self.layers = {n: load_layer(tensors, f"{name}.{n}", device) for n in LAYERS}
        self._shapes = {n: tuple(tensors[f"{name}.{n}.weight"].shape) for n in LAYERS}
        windows = [self._window(tensors, f"{name}.{n}") for n in ("value_window", "size_window")]
        bits = int(tensors[f"{name}.window_bits"])
        if not SHIFT_BITS <= bits + FRACTION <= 23:
            raise ValueError(f"the model's windows {name} are out of range")
        # In fraction bits of activations, as exact as the integers.
        self.windows = torch.stack(windows).to(device) * 2.0**-bits
        self.taps = torch.tensor(sorted({t for taps in view.taps for t in taps}), device=device)
        finer = torch.tensor([1.0, INDEX_GAIN], device=device)[:, None]
        self._finer = finer * 2.0 ** (SHIFT_BITS - FRACTION)
        self._limits = torch.tensor([SHIFT_LIMIT, CHANGE_LIMIT], device=device)[:, None, None]
        self._by_tap = self.windows[:, :, self.taps].mT[:, :, None].contiguous()
        self._runs = [(own, self._by_row(own, rows)) for own, rows in _runs(view)]

    def _by_row(self, own: slice, rows: int) -> Tensor:
        """The upper rows of some channels' windows, (rows, 5, 1, 1, 2, channels)."""
        windows = self.windows[:, own, : rows * TAPS].permute(2, 0, 1)
        return windows.reshape(rows, TAPS, 1, 1, 2, -1)

    def check(self, hyper_channels: int) -> None:
        """``ValueError`` if a layer has another shape than its neighbours ask for."""
        width, inner = self._shapes["enter"][0], self._shapes["reduce"][0]
        inputs = hyper_channels + self.view.inputs
        outputs = 2 * (self.unit.last - self.unit.first)
        wanted = ((width, inputs), (inner, width), (width, inner), (outputs, width))
        for name, shape in zip(LAYERS, wanted, strict=True):
            if self._shapes[name] != shape:
                raise ValueError(f"the model's layer {name} has the shape {self._shapes[name]}, not {shape}")

    def _window(self, tensors: Mapping[str, Tensor], name: str) -> Tensor:
        """(spatial, 25) integers, zero where the window shows nothing yet."""
        weight = tensors[name]
        if weight.shape != (self.view.spatial, TAPS * TAPS) or weight.dtype != torch.int8:
            raise ValueError(f"the model's window {name} has the wrong shape")
        mask = torch.zeros(weight.shape, dtype=torch.float32, device="cpu")
        for channel, taps in enumerate(self.view.taps):
            mask[channel, list(taps)] = 1
        return weight.to(torch.float32) * mask

    def __call__(self, grid: Tensor, hidden: Tensor, where: Places | Wave, quality_code: int) -> Tensor:
        """Shifts of means and of scale indices for latents at some positions, (2, channels, P).

        ``grid`` (n (height + 4), width + 4, 2, M) holds what is decoded and its magnitudes, with two zeros around each
        tile, ``hidden`` is (n height width, H).
        """
        if isinstance(where, Wave):
            sums = self._viewed(grid, where)
        else:
            few = len(where) <= FEW or grid.device.type != "cpu"
            sums = self._gathered(grid, where) if few else self._convolved(grid, where)
        centre = where.within(grid[..., slice(*self.view.centre)])
        x = torch.cat([where.of(hidden), rounded(sums.flatten(1), 1.0), centre.flatten(1)], dim=1).t()
        said = self._network(x, quality_code).view(2, self.unit.last - self.unit.first, len(where))
        own = slice(self.unit.first, min(self.unit.last, self.view.spatial))
        if own.stop > own.start:
            both = (sums[:, :, own] * self._finer).add_(0.5).floor_().permute(1, 2, 0)
            said[:, : own.stop - own.start] += both
        return said.clamp_(-self._limits, self._limits)

    def _network(self, x: Tensor, quality_code: int) -> Tensor:
        x = self.layers["enter"].activated(x, quality_code)
        h = self.layers["reduce"].activated(x, quality_code)
        h = self.layers["expand"](h, quality_code)
        x = self.layers["expand"].activate(h.add_(x.to(h.dtype)))
        return self.layers["leave"](x, quality_code, by_row=True).to(torch.float32)

    def _convolved(self, grid: Tensor, where: Places) -> Tensor:
        """Sums over each channel's windows of values and of magnitudes, (P, 2, spatial).

        By the library's convolution, which is exact as long as it only multiplies and adds: windows
        of one channel and 5x5 have neither Winograd nor FFT variants on CPUs.
        """
        # Four dimensions before they change places: with other strides the library takes five times as long.
        both = grid[None, ..., : self.view.spatial].flatten(3).permute(0, 3, 1, 2)
        sums = torch.nn.functional.conv2d(both, self.windows.reshape(-1, 1, TAPS, TAPS), groups=both.shape[1])
        # What comes out lacks the grid's outer margin.
        row, place = grid.shape[1], where.padded
        at = place - MARGIN * (row + 1) - 2 * MARGIN * (torch.div(place, row, rounding_mode="floor") - MARGIN)
        return sums[0].permute(1, 2, 0).flatten(0, 1).index_select(0, at).view(len(at), 2, self.view.spatial)

    def _gathered(self, grid: Tensor, where: Places) -> Tensor:
        """The same for a few positions, or where a convolution may not be exact."""
        row = grid.shape[1]
        offsets = (torch.div(self.taps, TAPS, rounding_mode="floor") - MARGIN) * row + self.taps % TAPS - MARGIN
        around = (where.padded + offsets[:, None]).flatten()
        seen = grid[..., 0, : self.view.spatial].flatten(0, 1).index_select(0, around)
        seen = seen.view(len(offsets), len(where), self.view.spatial)
        value, size = self._by_tap
        return torch.stack([(seen * value).sum(dim=0), seen.abs_().mul_(size).sum(dim=0)], dim=1)

    def _viewed(self, grid: Tensor, wave: Wave) -> Tensor:
        """The same for a wave, whose windows need no copy."""
        found = []
        for own, windows in self._runs:
            seen = wave.windows(grid[..., own], high=len(windows))
            # Left to itself, the product would lie in memory as the view does, and take three times as long to sum up.
            products = torch.mul(seen, windows, out=grid.new_empty(seen.shape))
            found.append(products.flatten(0, 1).sum(dim=0).flatten(0, 1))
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def _runs(view: View) -> list[tuple[slice, int]]:
    """Neighbouring channels that see as many rows of their windows, and how many."""
    found, first = [], 0
    for rows, channels in groupby(view.taps, lambda taps: max(taps, default=-1) // TAPS + 1):
        end = first + len(list(channels))
        found.append((slice(first, end), rows))
        first = end
    return found


def rounded(x: Tensor, factor: float) -> Tensor:
    """x times a power of two, rounded and limited to an activation."""
    return rounded_down(x, factor).clamp_(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)


def rounded_down(x: Tensor, factor: float) -> Tensor:
    """x times a power of two, to the nearest whole number, halves up."""
    return x.mul(factor).add_(0.5).floor_() if factor != 1 else x.add(0.5).floor_()

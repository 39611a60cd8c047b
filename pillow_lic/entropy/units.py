"""The networks of context models in integers.

All that enters a product is an integer of at most eight bits, and every sum stays below 2**24.
Float32 arithmetic is then exact in any order, and stays exact where a library rounds the factors of
float32 products to bfloat16 or TF32: eight bits fit both, and sums are kept in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pillow_lic.entropy.layers import FEW, IntegerLayer
from pillow_lic.models.context.schedule import TAPS, Unit, View
from pillow_lic.models.transforms import QUALITIES

FRACTION = 5
"""Fraction bits of everything that enters a product."""

ACTIVATION_LIMIT = 255
WEIGHT_LIMIT = 127
EXACT = 2.0**24
RATIO_LIMIT = 4 << FRACTION
RECIPROCAL_BITS = 8
"""Fraction bits of 1/scale beyond those of the ratio."""

SHIFT_BITS = 8
"""Fraction bits of what a network answers: shifts in scales and in scale indices."""

SHIFT_LIMIT = 8.0 * 2**SHIFT_BITS
CHANGE_LIMIT = 32.0 * 2**SHIFT_BITS
INDEX_GAIN = 8
"""Scale index steps for each unit of what the networks and windows say of magnitudes."""

LAYERS = ("enter", "reduce", "expand", "leave")
GRAINS = {1, 2, 4, 8, 16, 32, 64}


@dataclass(frozen=True)
class Ladder:
    """What context models need to know of each scale index, all integers.

    ``reciprocal``: ratio units (1/32) times 2**8 for each step, ``scale``: 64ths of a step,
    ``grain``: to how many 64ths of a step a shift is rounded (1, 2, 4 ... 64), (scales,) each.
    """

    reciprocal: Tensor
    scale: Tensor
    grain: NDArray[np.int32]

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], scales: int, device: torch.device) -> Ladder:
        """Take the ladder from a model's tensors; ``ValueError`` if it is impossible."""
        reciprocal, scale, grain = (tensors[f"ladder.{n}"] for n in ("reciprocal", "scale", "grain"))
        if any(t.shape != (scales,) or t.is_floating_point() for t in (reciprocal, scale, grain)):
            raise ValueError("the model's ladder of scales has the wrong shape")
        extremes = [int(x) for t in (reciprocal, scale) for x in (t.min(), t.max())]
        if min(extremes) < 1 or extremes[1] >= 2**17 or extremes[3] > 2**13 or not set(grain.tolist()) <= GRAINS:
            raise ValueError("the model's ladder of scales is out of range")
        return cls(reciprocal.to(device, torch.int32), scale.to(device, torch.float32), grain.numpy().astype(np.int32))

    @property
    def first_table(self) -> NDArray[np.int32]:
        """Where the tables of each scale index begin, and at the end how many there are."""
        return np.concatenate([[0], np.cumsum(phases(self.grain))]).astype(np.int32)


def phases(grain: NDArray[np.int32]) -> NDArray[np.int32]:
    """How many fractions of a step, from 0 to 1/2, a grain leaves."""
    return (32 // grain + 1).astype(np.int32)


def load_layer(tensors: Mapping[str, Tensor], name: str, device: torch.device) -> IntegerLayer:
    """A layer of a model's context; ``ValueError`` if its sums might not be exact."""
    weight, bias, shift = (tensors[f"{name}.{part}"] for part in ("weight", "bias", "shift"))
    if weight.is_floating_point() or bias.is_floating_point() or shift.is_floating_point():
        raise ValueError(f"the model's layer {name} does not consist of integers")
    shifts = shift.to(torch.int64).numpy()
    if shifts.min() < 0 or shifts.max() > 23 or int(weight.to(torch.int32).abs().max()) > WEIGHT_LIMIT:
        raise ValueError(f"the model's layer {name} is out of range")
    if weight.dim() != 2 or bias.shape != (QUALITIES, *shift.shape) or shift.shape != weight.shape[:1]:
        raise ValueError(f"the model's layer {name} has the wrong shape")
    starts = bias.to(torch.int64).numpy() + ((1 << shifts) >> 1)
    sums = weight.to(torch.int32).abs().sum(dim=1).numpy() * ACTIVATION_LIMIT
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
        self._by_tap = self.windows[:, :, self.taps].mT.contiguous()

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

    def __call__(
        self, ratio: Tensor, hidden: Tensor, at: Tensor, place: Tensor, quality_code: int
    ) -> tuple[Tensor, Tensor]:
        """Shifts for (channels, P) latents at flat positions ``at``, which lie at ``place`` in a grid with margins.

        ``ratio`` (M, n (height + 4), width + 4) holds what is decoded with two zeros around each, ``hidden``
        (H, n height, width); both had better lie in memory position by position, since positions are what is picked.
        """
        seen = ratio[: self.view.spatial]
        few = self.unit.causal or len(at) <= FEW or seen.device.type != "cpu"
        sums = self._gathered(seen, place) if few else self._convolved(seen, place)
        centre = by_position(seen[slice(*self.view.centre)]).index_select(0, place)
        windows = rounded(sums.flatten(1), 1.0)
        x = torch.cat([by_position(hidden).index_select(0, at), windows, centre, centre.abs()], dim=1).t()
        x = self._network(x, quality_code)
        own = slice(self.unit.first, min(self.unit.last, self.view.spatial))
        if own.stop > own.start:
            both = (sums[:, :, own] * self._finer).add_(0.5).floor_().permute(1, 2, 0)
            x.view(2, len(x) // 2, x.shape[1])[:, : own.stop - own.start] += both
        shift, change = x.chunk(2)
        return shift.clamp_(-SHIFT_LIMIT, SHIFT_LIMIT), change.clamp_(-CHANGE_LIMIT, CHANGE_LIMIT)

    def _network(self, x: Tensor, quality_code: int) -> Tensor:
        x = self.layers["enter"].activated(x, quality_code)
        h = self.layers["reduce"].activated(x, quality_code)
        h = self.layers["expand"](h, quality_code)
        x = self.layers["expand"].activate(h.add_(x.to(h.dtype)))
        return self.layers["leave"](x, quality_code, by_row=True).to(torch.float32)

    def _convolved(self, seen: Tensor, place: Tensor) -> Tensor:
        """Sums over each channel's windows of values and of magnitudes around places in the grid, (P, 2, spatial).

        By the library's convolution, which is exact as long as it only multiplies and adds: windows
        of one channel and 5x5 have neither Winograd nor FFT variants on CPUs.
        """
        grid = seen.permute(1, 2, 0)[None]
        # Four dimensions before they change places: with other strides the library takes five times as long.
        both = torch.cat([grid, grid.abs()], dim=3).permute(0, 3, 1, 2)
        sums = torch.nn.functional.conv2d(both, self.windows.reshape(-1, 1, TAPS, TAPS), groups=both.shape[1])
        # What comes out lacks the grid's outer margin.
        margin, row = TAPS // 2, seen.shape[2]
        at = place - margin * (row + 1) - 2 * margin * (torch.div(place, row, rounding_mode="floor") - margin)
        return by_position(sums[0]).index_select(0, at).reshape(len(at), 2, seen.shape[0])

    def _gathered(self, seen: Tensor, place: Tensor) -> Tensor:
        """The same for a few positions, or where a convolution may not be exact."""
        row = seen.shape[2]
        offsets = (torch.div(self.taps, TAPS, rounding_mode="floor") - 2) * row + self.taps % TAPS - 2
        around = (place[:, None] + offsets).flatten()
        patches = by_position(seen).index_select(0, around).reshape(len(place), len(offsets), len(seen))
        value, size = self._by_tap
        both = patches.new_empty((len(place), 2, len(seen)))
        torch.sum(patches * value, dim=1, out=both[:, 0])
        torch.sum(patches.abs_().mul_(size), dim=1, out=both[:, 1])
        return both


def by_position(grid: Tensor) -> Tensor:
    """(channels, h, w) as (h w, channels); no copy if it lies in memory like that."""
    return grid.permute(1, 2, 0).flatten(0, 1)


def padded(at: Tensor, height: int, width: int) -> Tensor:
    """Flat positions in a grid with a margin of two around each tile (height, width) from those without margins."""
    margin = TAPS // 2
    row = torch.div(at, width, rounding_mode="floor")
    above = margin + 2 * margin * torch.div(row, height, rounding_mode="floor")
    return at + 2 * margin * row + above * (width + 2 * margin) + margin


def rounded(x: Tensor, factor: float) -> Tensor:
    """x times a power of two, rounded and limited to an activation."""
    return rounded_down(x, factor).clamp_(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)


def rounded_down(x: Tensor, factor: float) -> Tensor:
    """x times a power of two, to the nearest whole number, halves up."""
    return x.mul(factor).add_(0.5).floor_() if factor != 1 else x.add(0.5).floor_()

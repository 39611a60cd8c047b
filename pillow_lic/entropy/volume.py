"""The context model over the volume of latents in integers, decoded in waves.

What :mod:`pillow_lic.models.context.volume` computes in floating point; number formats are those of
:mod:`pillow_lic.entropy.units`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pillow_lic.entropy.context import ExactContext
from pillow_lic.entropy.exact import ACTIVATION_BITS
from pillow_lic.entropy.ladder import FRACTION, SHIFT_BITS
from pillow_lic.entropy.passes import Given, Pass
from pillow_lic.entropy.units import (
    ACTIVATION_LIMIT,
    CHANGE_LIMIT,
    SHIFT_LIMIT,
    load_layer,
    rounded,
    rounded_down,
)
from pillow_lic.models.context.schedule import Unit
from pillow_lic.models.context.volume import DEPTH, OWN, REACH, TAPS, offsets, padded, wave_of
from pillow_lic.models.hyperprior import INDEX_GAIN

LAYERS = ("position", "enter", "reduce", "expand", "leave")


class ExactVolume(ExactContext):
    """Latents (M, h, w) as one row of M h w of them, coded wave by wave."""

    def __init__(self, latents: int, tensors: Mapping[str, Tensor], scales: int, device: torch.device) -> None:
        super().__init__((Unit(0, 0, 1),), tensors, scales, device)
        self.layers = {name: load_layer(tensors, name, device) for name in LAYERS}
        self._shapes = {name: tuple(tensors[f"{name}.weight"].shape) for name in LAYERS}
        self.windows = {n: self._table(tensors, n, (latents, OWN), torch.int8) for n in ("value_window", "size_window")}
        width = self._shapes["enter"][0]
        self.channel = self._table(tensors, "channel", (latents, width), torch.int16)
        self.rung = self._table(tensors, "rung", (scales, width), torch.int16)
        self.window_bits = int(tensors["window_bits"])
        if not SHIFT_BITS <= self.window_bits + FRACTION <= 23:
            raise ValueError("the model's windows are out of range")

    def check(self, hyper_channels: int) -> None:
        """``ValueError`` if a layer has another shape than its neighbours ask for."""
        width, inner = self._shapes["enter"][0], self._shapes["reduce"][0]
        inputs = (hyper_channels, 2 * len(TAPS) + 2, width, inner, width)
        for name, shape in zip(LAYERS, zip((width, width, inner, width, 2), inputs, strict=True), strict=True):
            if self._shapes[name] != shape:
                raise ValueError(f"the model's layer {name} has the shape {self._shapes[name]}, not {shape}")

    def _table(self, tensors: Mapping[str, Tensor], name: str, shape: tuple[int, int], kind: torch.dtype) -> Tensor:
        table = tensors[name]
        if table.shape != shape or table.dtype != kind or int(table.to(torch.int64).abs().max()) > ACTIVATION_LIMIT:
            raise ValueError(f"the model's table {name} has the wrong shape or range")
        return table.to(self.device, torch.float32)

    def _order_of(self, given: Given) -> NDArray[np.int32]:
        channel, row, column = (np.arange(n, dtype=np.int32) for n in given.index.shape)
        found: NDArray[np.int32] = wave_of(channel[:, None, None], row[:, None], column)
        return found

    def _passes(self, given: Given, steps: int | None = None) -> Iterator[Pass]:  # its one step is all
        m, h, w = given.index.shape
        hidden = rounded(given.hidden.flatten(1), 2.0 ** (FRACTION - ACTIVATION_BITS)).to(torch.float32)
        positions = self._run("position", hidden, given.quality_code)
        half = None if given.lattice is None else given.lattice.half.astype(np.int32).ravel()
        index = given.index.cpu().numpy()
        ratio = torch.zeros((m, h, w), dtype=torch.float32, device=self.device)
        if given.known is not None:
            ratio = torch.from_numpy(self._known_ratios(given)).to(self.device, torch.float32)
        ratio = padded(ratio)
        rows, columns = ratio.shape[1:]
        around, flat = offsets(rows, columns).to(self.device), ratio.view(-1)
        found = torch.from_numpy(np.argwhere(given.codes(index))).to(self.device)
        waves = wave_of(*found.unbind(1))
        order = torch.argsort(waves, stable=True)
        counts = torch.unique(waves, return_counts=True)[1].tolist()
        for where in torch.split(found[order], counts):
            channel, row, column = where.unbind(1)
            at = ((channel * h + row) * w + column).cpu().numpy()
            place = ((channel + DEPTH) * rows + row + REACH) * columns + column + REACH
            part = Pass(at, index.take(at).astype(np.int32), None if half is None else half.take(at), place)
            seen = flat[around[:, None] + place]
            base = positions[:, row * w + column] + self.channel[channel].T + self.rung[torch.from_numpy(part.index)].T
            said = torch.stack(self._network(seen, channel, base, given.quality_code))
            self._refine(part, *said.cpu().numpy().astype(np.int32))
            yield part
            known = self.ladder.ratios(part.symbols, part.index, part.half)
            flat[place] = torch.from_numpy(known).to(self.device, torch.float32)

    def _network(self, seen: Tensor, channel: Tensor, base: Tensor, quality_code: int) -> tuple[Tensor, Tensor]:
        """Shifts of means and of scale indices (P,) for latents of some channels (P,) that see (taps, P)."""
        sizes = seen.abs()
        value = (seen[:OWN] * self.windows["value_window"][channel].T).sum(dim=0)
        size = (sizes[:OWN] * self.windows["size_window"][channel].T).sum(dim=0)
        drop = 2.0**-self.window_bits
        x = torch.cat([seen, sizes, rounded(value, drop)[None], rounded(size, drop)[None]])
        x = _activated(self._run("enter", x, quality_code) + base)
        h = _activated(self._run("reduce", x, quality_code))
        x = _activated(x + self._run("expand", h, quality_code))
        shift, change = self.layers["leave"](x, quality_code).to(torch.float32)
        drop *= 2.0 ** (SHIFT_BITS - FRACTION)
        shift, change = shift + rounded_down(value, drop), change + rounded_down(size, drop * INDEX_GAIN)
        return shift.clamp_(-SHIFT_LIMIT, SHIFT_LIMIT), change.clamp_(-CHANGE_LIMIT, CHANGE_LIMIT)

    def _run(self, name: str, x: Tensor, quality_code: int) -> Tensor:
        """A layer's results, limited to activations."""
        return self.layers[name](x, quality_code).to(torch.float32).clamp_(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)


def _activated(x: Tensor) -> Tensor:
    """Limited, and through the leaky ReLU with slope 1/8, rounded down."""
    return torch.nn.functional.leaky_relu_(x.clamp_(-ACTIVATION_LIMIT, ACTIVATION_LIMIT), 0.125).floor_()

"""Context models in integers: the same refined probabilities on every machine.

All that enters a product is an integer of at most eight bits, and every sum stays below 2**24.
Float32 arithmetic is then exact in any order, and stays exact where a library rounds the factors of
float32 products to bfloat16 or TF32: eight bits fit both, and sums are kept in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pillow_lic.entropy.coder import LIMIT, SymbolDecoder, SymbolEncoder, Symbols
from pillow_lic.entropy.exact import ACTIVATION_BITS, interpolate
from pillow_lic.entropy.tables import Tables
from pillow_lic.models.context.schedule import TAPS, Unit, View, view_of

FRACTION = 5
"""Fraction bits of everything that enters a product."""

ACTIVATION_LIMIT = 255.0
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
STEP_BITS = 6
"""Fraction bits of a step: shifts of means are whole 64ths."""


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


class Linear:
    """floor((weight x + bias + half) / 2**shift) on (in, P) float32 integers, by output channel."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str, device: torch.device) -> None:
        weight, bias, shift = (tensors[f"{name}.{part}"] for part in ("weight", "bias", "shift"))
        if weight.is_floating_point() or bias.is_floating_point() or shift.is_floating_point():
            raise ValueError(f"the model's layer {name} does not consist of integers")
        self.weight = weight.to(device, torch.float32)
        self.shift = shift.to(torch.int64).numpy()
        if self.shift.min() < 0 or self.shift.max() > 23 or int(weight.to(torch.int32).abs().max()) > WEIGHT_LIMIT:
            raise ValueError(f"the model's layer {name} is out of range")
        self.bias = bias.to(torch.int64).numpy() + ((1 << self.shift) >> 1)
        sums = self.weight.abs().sum(dim=1).double().cpu().numpy() * ACTIVATION_LIMIT
        if float((sums + np.abs(self.bias).max(axis=0)).max()) >= EXACT:
            raise ValueError(f"the model's layer {name} is not exact in float32")
        self._scale = torch.from_numpy(np.ldexp(1.0, -self.shift)).to(self.weight)[:, None]
        self._start = (-1, self._scale)

    def __call__(self, x: Tensor, quality_code: int) -> Tensor:
        """(in, P) -> (out, P)."""
        code, start = self._start
        if code != quality_code:  # one assignment, so that threads see either pair
            start = torch.from_numpy(interpolate(self.bias, quality_code)).to(self.weight)[:, None]
            self._start = (quality_code, start)
        # Scaling by a power of two is exact and floor is too: an arithmetic shift.
        return torch.addmm(start, self.weight, x).mul_(self._scale).floor_()


class ExactUnit:
    """One unit's network: shifts of means (in scales) and of scale indices, 8 fraction bits each."""

    def __init__(self, tensors: Mapping[str, Tensor], name: str, unit: Unit, view: View, device: torch.device) -> None:
        self.unit, self.view = unit, view
        self.layers = {n: Linear(tensors, f"{name}.{n}", device) for n in LAYERS}
        self.windows = {n: self._window(tensors, f"{name}.{n}").to(device) for n in ("value_window", "size_window")}
        bits = int(tensors[f"{name}.window_bits"])
        if not SHIFT_BITS <= bits + FRACTION <= 23:
            raise ValueError(f"the model's windows {name} are out of range")
        self.window_bits = bits
        self.taps = torch.tensor(sorted({t for taps in view.taps for t in taps}), device=device)

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
        self, ratio: Tensor, hidden: Tensor, at: Tensor, width: int, quality_code: int
    ) -> tuple[Tensor, Tensor]:
        """Shifts for (channels, P) latents at flat positions ``at`` of a grid ``width`` wide.

        ``ratio`` (M, h + 4, w + 4) holds what is decoded with two zeros around, ``hidden`` (H, h w).
        """
        seen = ratio[: self.view.spatial]
        place = padded(at, width)
        few = self.unit.causal or seen.device.type != "cpu"
        value, size = self._gathered(seen, place) if few else self._convolved(seen, at)
        drop = 2.0**-self.window_bits
        centre = seen[: self.view.centre].flatten(1).index_select(1, place)
        x = torch.cat([hidden.index_select(1, at), _round(value, drop), _round(size, drop), centre, centre.abs()])
        x = self._network(x, quality_code)
        shift, change = x.chunk(2)
        own = slice(self.unit.first, min(self.unit.last, self.view.spatial))
        if own.stop > own.start:
            count, drop = own.stop - own.start, 2.0 ** (SHIFT_BITS - FRACTION - self.window_bits)
            shift[:count] += torch.floor(value[own] * drop + 0.5)
            change[:count] += torch.floor(size[own] * (drop * INDEX_GAIN) + 0.5)
        return shift.clamp_(-SHIFT_LIMIT, SHIFT_LIMIT), change.clamp_(-CHANGE_LIMIT, CHANGE_LIMIT)

    def _network(self, x: Tensor, quality_code: int) -> Tensor:
        x = _activate(self.layers["enter"](x, quality_code))
        h = _activate(self.layers["reduce"](x, quality_code))
        x = _limit(x + self.layers["expand"](h, quality_code))
        # A limited activation stays limited, and its leaky ReLU is exact.
        return self.layers["leave"](_activate(x), quality_code)

    def _convolved(self, seen: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over each channel's windows of values and of magnitudes, (spatial, P) each.

        By the library's convolution, which is exact as long as it only multiplies and adds: windows
        of one channel and 5x5 have neither Winograd nor FFT variants on CPUs.
        """
        sums = []
        for name, values in (("value_window", seen), ("size_window", seen.abs())):
            kernel = self.windows[name].reshape(-1, 1, TAPS, TAPS)
            out = torch.nn.functional.conv2d(values[None], kernel, groups=self.view.spatial)
            sums.append(out[0].flatten(1).index_select(1, at))
        return sums[0], sums[1]

    def _gathered(self, seen: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """The same for a few positions, or where a convolution may not be exact."""
        row = seen.shape[2]
        offsets = (torch.div(self.taps, TAPS, rounding_mode="floor") - 2) * row + self.taps % TAPS - 2
        patches = seen.flatten(1)[:, place[:, None] + offsets]
        value, size = (self.windows[n][:, None, self.taps] for n in ("value_window", "size_window"))
        return (patches * value).sum(dim=2), (patches.abs() * size).sum(dim=2)


class ExactContext:
    """A context model: one schedule for coding and decoding alike."""

    def __init__(self, units: Sequence[Unit], tensors: Mapping[str, Tensor], scales: int, device: torch.device) -> None:
        self.units, self.scales, self.device = tuple(units), scales, device
        self.latents = max(u.last for u in units)
        self.ladder = Ladder.load(tensors, scales, device)
        lengths = tensors["tables.lengths"].numpy().astype(np.int32)
        self.tables = Tables.whole(tensors["tables.frequencies"].numpy().astype(np.int32), lengths)
        first = self.ladder.first_table
        grain = torch.from_numpy(self.ladder.grain).to(device, torch.float32)
        self._by_scale = (grain, 1 / grain, torch.from_numpy(first[:-1]).to(device, torch.float32))
        if len(self.tables) != first[-1]:
            raise ValueError("the model's context has another number of tables than its ladder asks for")
        views = [view_of(u, self.units) for u in self.units]
        self.networks = {
            u: ExactUnit(tensors, f"units.{n}", u, view, device)
            for n, (u, view) in enumerate(zip(self.units, views, strict=True))
            if view.spatial
        }

    def encode(
        self, coder: SymbolEncoder, symbols: Symbols, index: Tensor, hidden: Tensor, quality_code: int, skip: int
    ) -> None:
        """Append the symbols (M, h, w) of y, given what h_s says of them."""
        for values, table in self.seen(symbols, index, hidden, quality_code, skip):
            coder.encode(values, table, self.tables)

    def seen(
        self, symbols: Symbols, index: Tensor, hidden: Tensor, quality_code: int, skip: int
    ) -> Iterator[tuple[NDArray[np.int32], NDArray[np.uint16]]]:
        """What is coded, pass by pass: values relative to the shifted means, and their tables."""
        for parts in self._known(symbols, index, hidden, quality_code, skip):
            yield np.concatenate([p.shifted() for p in parts]), np.concatenate([p.table for p in parts])

    def conditions(
        self, symbols: Symbols, index: Tensor, hidden: Tensor, quality_code: int, skip: int
    ) -> tuple[NDArray[np.uint16], NDArray[np.int16], NDArray[np.bool_]]:
        """Table, whole steps of shift, and whether it is mirrored, of every latent (M, h, w), given all
        that the symbols say before it; zeros where none is coded.
        """
        size = index.shape[1] * index.shape[2]
        table = np.zeros(index.shape, np.uint16)
        whole, mirrored = np.zeros(index.shape, np.int16), np.zeros(index.shape, np.bool_)
        for parts in self._known(symbols, index, hidden, quality_code, skip):
            for part in parts:
                channel, place = np.divmod(part.coded, part.at.numel())
                target = (channel + part.unit.first) * size + part.at.cpu().numpy()[place]
                table.put(target, part.table)
                whole.put(target, part.whole)
                mirrored.put(target, part.mirrored)
        return table, whole, mirrored

    def _known(
        self, symbols: Symbols, index: Tensor, hidden: Tensor, quality_code: int, skip: int
    ) -> Iterator[list[Part]]:
        """The parts of each pass, with the symbols they have."""
        flat = torch.from_numpy(symbols).reshape(self.latents, -1)
        for parts in self._passes(index, hidden, quality_code, skip):
            for part in parts:
                block = flat[part.unit.first : part.unit.last].index_select(1, part.at.cpu())
                part.symbols = block.numpy().ravel().take(part.coded).astype(np.int32)
            yield parts

    def decode(self, coder: SymbolDecoder, index: Tensor, hidden: Tensor, quality_code: int, skip: int) -> Symbols:
        """Read the symbols of y, (M, h, w); ``OSError`` if there is one that no encoder writes."""
        symbols = torch.zeros((self.latents, index.shape[1] * index.shape[2]), dtype=torch.int16, device="cpu")
        for parts in self._passes(index, hidden, quality_code, skip):
            decoded = coder.decode(np.concatenate([p.table for p in parts]), self.tables)
            first = 0
            for part in parts:
                part.unshift(decoded[first : first + part.coded.size])
                first += part.coded.size
                symbols[part.unit.first : part.unit.last].index_copy_(1, part.at.cpu(), part.block().to(torch.int16))
        found: Symbols = symbols.numpy().reshape(index.shape)
        return found

    def _passes(self, index: Tensor, hidden: Tensor, quality_code: int, skip: int) -> Iterator[list[Part]]:
        """The parts of each pass of the range coder in turn; whoever iterates fills in their symbols."""
        _, h, w = index.shape
        margin = TAPS // 2
        # Multiplying by whole powers of two and rounding down: exact in float64 and float32 alike.
        hidden = _round(hidden.flatten(1), 2.0 ** (FRACTION - ACTIVATION_BITS)).to(torch.float32)
        ratio = torch.zeros((self.latents, h + 2 * margin, w + 2 * margin), dtype=torch.float32, device=self.device)
        flat = index.flatten(1)
        for step in self._steps(h, w):
            parts = []
            for unit, at in step:
                own = flat[unit.first : unit.last].index_select(1, at)
                some = (own >= skip).any(dim=0)  # positions where nothing is coded ask for no network
                at, own = at[some], own[:, some]
                shift = change = torch.zeros(own.shape, dtype=torch.float32, device=self.device)
                if unit in self.networks:
                    shift, change = self.networks[unit](ratio, hidden, at, w, quality_code)
                parts.append(self._refine(unit, at, own, shift, change, skip))
            yield parts
            for part in parts:
                self._place(ratio, part, w)

    def _refine(self, unit: Unit, at: Tensor, index: Tensor, shift: Tensor, change: Tensor, skip: int) -> Part:
        """Tables and shifts of a unit's latents; all sums and products of integers below 2**24."""
        flat = index.flatten()
        coded = (flat >= skip).nonzero()[:, 0]
        old, shift, change = (x.index_select(0, coded) for x in (flat.int(), shift.flatten(), change.flatten()))
        scale = self.ladder.scale.index_select(0, old)
        offset = torch.floor(shift * scale * 2.0**-SHIFT_BITS + 0.5)
        refined = (old + torch.floor(change * 2.0**-SHIFT_BITS + 0.5)).clamp_(0, self.scales - 1).int()
        grain, inverse, first = (t.index_select(0, refined) for t in self._by_scale)
        offset = torch.floor((offset + torch.floor(grain * 0.5)) * inverse) * grain
        whole = torch.floor((offset + 32) * 2.0**-STEP_BITS)
        fraction = offset - whole * 2.0**STEP_BITS
        table = first + fraction.abs() * inverse
        chosen = [x.to(torch.int16).cpu().numpy() for x in (table, whole, fraction)]
        return Part(unit, at, index, coded.cpu().numpy(), chosen[0].astype(np.uint16), chosen[1], chosen[2] < 0)

    def _place(self, ratio: Tensor, part: Part, width: int) -> None:
        """Make a part's symbols known to the next ones, in units of their scales."""
        q = part.block().to(self.device).clamp_(-256, 256)
        reciprocal = self.ladder.reciprocal.index_select(0, part.index.flatten().int()).reshape(q.shape)
        r = (q * reciprocal + 2 ** (RECIPROCAL_BITS - 1)) >> RECIPROCAL_BITS
        r = r.clamp_(-RATIO_LIMIT, RATIO_LIMIT).to(torch.float32)
        ratio[part.unit.first : part.unit.last].flatten(1).index_copy_(1, padded(part.at, width), r)

    def _steps(self, h: int, w: int) -> Iterator[list[tuple[Unit, Tensor]]]:
        """Which units are coded together, and where: the one schedule of encoder and decoder."""
        row, column = torch.arange(h, device=self.device)[:, None], torch.arange(w, device=self.device)
        if self.units[0].causal:
            # Two rows up and two columns to the right are known before: waves of x + 3 y.
            wave = (column + 3 * row).flatten()
            order = torch.argsort(wave, stable=True)
            for at in torch.split(order, torch.bincount(wave).tolist()):
                yield [(self.units[0], at)]
            return
        for step in sorted({u.step for u in self.units}):
            here = [u for u in self.units if u.step == step]
            yield [(u, _at(row + column, u.parity)) for u in here]


@dataclass
class Part:
    """A unit's latents in one pass: which are coded, with which tables, around which shifted means.

    ``at`` are flat positions, ``index`` (channels, P); the rest holds the coded latents only,
    ``coded`` their places among channels and positions.  A negative fraction of a step (``mirrored``)
    is coded with the table of the positive one.
    """

    unit: Unit
    at: Tensor
    index: Tensor
    coded: NDArray[np.intp]
    table: NDArray[np.uint16]
    whole: NDArray[np.int16]
    mirrored: NDArray[np.bool_]
    symbols: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def shifted(self) -> NDArray[np.int32]:
        """The symbols as they are coded: relative to the shifted means."""
        relative = self.symbols - self.whole
        return np.where(self.mirrored, -relative, relative)

    def unshift(self, values: Symbols) -> None:
        """Take symbols as they were coded; ``OSError`` if one does not fit 16 bits."""
        self.symbols = np.where(self.mirrored, -values, values).astype(np.int32) + self.whole
        if self.symbols.size and int(np.abs(self.symbols).max()) > LIMIT:
            raise OSError("damaged LIC file: a symbol is out of range")

    def block(self) -> Tensor:
        """All symbols, (channels, P) int32 on the CPU: zero where none is coded."""
        block = np.zeros(self.index.shape, np.int32)
        block.put(self.coded, self.symbols)
        return torch.from_numpy(block)


def padded(at: Tensor, width: int) -> Tensor:
    """Flat positions in a grid with a margin of two from those in the grid itself."""
    margin = TAPS // 2
    row = torch.div(at, width, rounding_mode="floor")
    return at + 2 * margin * row + margin * (width + 2 * margin) + margin


def _at(parities: Tensor, parity: int | None) -> Tensor:
    wanted = torch.ones_like(parities) if parity is None else parities % 2 == parity
    return wanted.flatten().nonzero()[:, 0]


def _limit(x: Tensor) -> Tensor:
    return x.clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)


def _activate(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 1/8, floored, on limited activations."""
    x = _limit(x)
    return torch.maximum(x, (x * 0.125).floor_(), out=x)


def _round(x: Tensor, factor: float) -> Tensor:
    """x times a power of two, rounded and limited to an activation."""
    return (x * factor).add_(0.5).floor_().clamp_(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)

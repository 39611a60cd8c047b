"""Context models in integers: the same refined probabilities on every machine.

A context model says in which order latents are coded, and, of each, around which shifted mean and with
which table.  Its networks are in :mod:`pillow_lic.entropy.units`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pillow_lic.entropy.coder import LIMIT, SymbolDecoder, SymbolEncoder, Symbols
from pillow_lic.entropy.exact import ACTIVATION_BITS
from pillow_lic.entropy.tables import Tables
from pillow_lic.entropy.units import (
    FRACTION,
    RATIO_LIMIT,
    RECIPROCAL_BITS,
    SHIFT_BITS,
    ExactUnit,
    Ladder,
    padded,
    rounded,
)
from pillow_lic.models.context.schedule import TAPS, Unit, view_of
from pillow_lic.quantizers.cosets import Cosets

STEP_BITS = 6
"""Fraction bits of a step: shifts of means are whole 64ths."""

HALF = 1 << STEP_BITS - 1


class ExactContext:
    """A context model: one schedule for coding and decoding alike.

    Units count channels in an ``order`` of their own; without it, as they are.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        tensors: Mapping[str, Tensor],
        scales: int,
        device: torch.device,
        order: Sequence[int] | None = None,
    ) -> None:
        self.units, self.scales, self.device = tuple(units), scales, device
        self.latents = max(u.last for u in units)
        self.order = np.array(range(self.latents) if order is None else order, np.intp)
        moved = bool((self.order != np.arange(self.latents)).any())
        self._moved = torch.from_numpy(self.order).to(device) if moved else None
        self.ladder = Ladder.load(tensors, scales, device)
        first = self.ladder.first_table
        self.tables = self._load_tables(tensors, "tables", first[-1])
        self.lattice_tables = self._load_tables(tensors, "lattice", first[-1])
        if self.lattice_tables and int(self.ladder.grain.max()) > HALF:
            raise ValueError("the model's lattice tables know no half steps")
        grain = torch.from_numpy(self.ladder.grain).to(device, torch.float32)
        self._by_scale = (grain, 1 / grain, torch.from_numpy(first[:-1]).to(device, torch.float32))
        views = [view_of(u, self.units) for u in self.units]
        self.networks = {
            u: ExactUnit(tensors, f"units.{n}", u, view, device)
            for n, (u, view) in enumerate(zip(self.units, views, strict=True))
            if view.spatial
        }

    def check(self, hyper_channels: int) -> None:
        """``ValueError`` if the networks do not fit each other, or h_s's last hidden layer."""
        for unit in self.networks.values():
            unit.check(hyper_channels)

    @staticmethod
    def _load_tables(tensors: Mapping[str, Tensor], name: str, wanted: int) -> Tables | None:
        if f"{name}.lengths" not in tensors:
            return None
        frequencies, lengths = (
            tensors[f"{name}.{part}"].numpy().astype(np.int32) for part in ("frequencies", "lengths")
        )
        tables = Tables.whole(frequencies, lengths)
        if len(tables) != wanted:
            raise ValueError("the model's context has another number of tables than its ladder asks for")
        return tables

    def tables_for(self, lattice: Cosets | None) -> Tables:
        """The tables of a quantiser; ``ValueError`` if the model has none for it."""
        tables = self.tables if lattice is None else self.lattice_tables
        if tables is None:
            raise ValueError("the model has no probability tables for this quantizer")
        return tables

    def encode(self, coder: SymbolEncoder, symbols: Symbols, given: Given) -> None:
        """Append the symbols (M, h, w) of y."""
        tables, lattice = self.tables_for(given.lattice), self.in_order(given)
        for parts in self._known(symbols, given):
            values, table = (np.concatenate([getattr(p, n) for p in parts]) for n in ("coded_values", "table"))
            if lattice is None:
                coder.encode(values, table, tables)
                continue
            # The last of a group knows whether it is even; all the others come first.
            last = lattice.group_of_last[np.concatenate([p.target for p in parts])] >= 0
            both = tables.with_parities()
            coder.encode(values[~last], table[~last], both)
            coder.encode(values[last], _of_parity(table[last], values[last] % 2 == 1, len(tables)), both)

    def seen(self, symbols: Symbols, given: Given) -> Iterator[tuple[NDArray[np.int32], NDArray[np.uint16]]]:
        """What is coded, pass by pass: values relative to the shifted means, and their tables."""
        for parts in self._known(symbols, given):
            yield np.concatenate([p.coded_values for p in parts]), np.concatenate([p.table for p in parts])

    def conditions(self, symbols: Symbols, given: Given) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
        """Scale index and shift of the mean in 64ths of a step of every latent (M, h, w), given all that
        the symbols say before it; zeros where none is coded.
        """
        shape = given.index.shape
        scale, offset = np.zeros(shape, np.int16), np.zeros(shape, np.int32)
        for parts in self._known(symbols, given):
            for part in parts:
                scale.put(part.target, part.scale.cpu().numpy())
                offset.put(part.target, part.offset.cpu().numpy())
        return scale, offset

    def rows(self, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Table, whole steps, and the fraction of a step (64ths, -32...31) for refined scale indices and
        offsets in 64ths that are multiples of their grains.
        """
        inverse, first = (t.index_select(0, scale) for t in self._by_scale[1:])
        offset = offset.to(torch.float32)
        whole = torch.floor((offset + HALF) * 2.0**-STEP_BITS)
        fraction = offset - whole * 2.0**STEP_BITS
        return first + fraction.abs() * inverse, whole, fraction

    def _known(self, symbols: Symbols, given: Given) -> Iterator[list[Part]]:
        """The parts of each pass, with the symbols they have."""
        for parts in self._passes(given):
            for part in parts:
                part.symbols = symbols.take(part.target).astype(np.int32)
            yield parts

    def decode(self, coders: Sequence[SymbolDecoder], given: Given, channels: int | None = None) -> Symbols:
        """Read the symbols of y, (M, h, w), of tiles with a coder each; ``OSError`` if there is one that no encoder
        writes.

        Only as many steps of the schedule as it takes to know the first ``channels``; what is not read is 0.
        """
        tables, shape, lattice = self.tables_for(given.lattice), given.index.shape, self.in_order(given)
        read = _Streams(coders, shape[1] * shape[2])
        symbols = np.zeros(shape, np.int16) if given.known is None else given.known.copy()
        flat = symbols.reshape(-1)
        for parts in self._passes(given, None if channels is None else self.steps_for(channels)):
            target, table, whole, mirrored = (_all(parts, n) for n in ("target", "table", "whole", "mirrored"))
            if lattice is None:
                values = read(target, table, tables)
            else:
                values = _decode_groups(read, target, table, whole, mirrored, lattice, tables, flat)
            found = np.where(mirrored, -values, values).astype(np.int32) + whole
            if found.size and int(np.abs(found).max()) > LIMIT:
                raise OSError("damaged LIC file: a symbol is out of range")
            flat[target] = found
            first = 0
            for part in parts:
                part.symbols = found[first : first + part.coded.size]
                first += part.coded.size
        return symbols

    def in_order(self, given: Given) -> Cosets | None:
        """The groups of a lattice, with those last that the schedule brings last."""
        even, odd = self._step_of[:, :, None, None]
        if given.lattice is None or bool((np.diff(self._step_of) >= 0).all()):
            return given.lattice
        if np.ptp(even - odd) == 0:
            return given.lattice.coded_by(even)
        _, h, w = given.index.shape
        parity = np.add.outer(np.arange(h) % (h // given.tiles), np.arange(w)) % 2
        return given.lattice.coded_by(np.where(parity, odd, even))

    @cached_property
    def _step_of(self) -> NDArray[np.int32]:
        """In which step channels come, at positions of either parity, (2, M)."""
        found = np.zeros((2, self.latents), np.int32)
        for unit in self.units:
            found[slice(None) if unit.parity is None else unit.parity, self.order[unit.first : unit.last]] = unit.step
        return found

    def _channels(self, grid: Tensor) -> Tensor:
        """(M, P) in the units' order."""
        return grid if self._moved is None else grid.index_select(0, self._moved)

    def steps_for(self, channels: int) -> int:
        """How many steps of the schedule it takes to know the first so many channels."""
        return 1 + max(u.step for u in self.units if bool((self.order[u.first : u.last] < channels).any()))

    def beyond(self, channels: int, tiles: int, height: int, width: int) -> NDArray[np.bool_]:
        """Which latents (M, n h, w) of n tiles are not read where only the first ``channels`` are asked for."""
        steps = self.steps_for(channels)
        parity = np.add.outer(np.arange(tiles * height) % height, np.arange(width)) % 2
        found = np.zeros((self.latents, *parity.shape), np.bool_)
        for unit in self.units:
            if unit.step >= steps and not unit.causal:
                found[self.order[unit.first : unit.last]] |= True if unit.parity is None else parity == unit.parity
        return found

    def _passes(self, given: Given, steps: int | None = None) -> Iterator[list[Part]]:
        """The parts of each pass of the range coder in turn; whoever iterates fills in their symbols."""
        _, h, w = given.index.shape
        tile, margin = (h // given.tiles, w), TAPS // 2
        # Multiplying by whole powers of two and rounding down: exact in float64 and float32 alike.
        hidden = rounded(given.hidden.permute(1, 2, 0), 2.0 ** (FRACTION - ACTIVATION_BITS)).to(torch.float32)
        hidden = hidden.contiguous().permute(2, 0, 1)
        rows = given.tiles * (tile[0] + 2 * margin)
        grid = torch.zeros((rows, w + 2 * margin, self.latents), dtype=torch.float32, device=self.device)
        ratio = grid.permute(2, 0, 1)
        flat = self._channels(given.index.flatten(1))
        half = None
        if given.lattice is not None:
            half = self._channels(torch.from_numpy(given.lattice.half).to(self.device).flatten(1)).int()
            half *= flat >= given.skip
        if given.known is not None:
            known = self._channels(torch.from_numpy(given.known).to(self.device, torch.int32).flatten(1))
            before = None if half is None else half * (flat >= given.limit)
            ratio[:, margin:-margin, margin:-margin] = self._ratio(known, flat, before).reshape(-1, h, w)
        places = padded(torch.arange(h * w, device=self.device), *tile)
        codes = given.codes(flat)
        asked = {u: codes[u.first : u.last].any(dim=0) for u in self.networks}
        everywhere = {u: bool(asked[u].all()) for u in self.networks}
        unseen: list[Part] = []
        for step in self._steps(h, w, steps, given.tiles):
            if unseen:  # what comes last of all stays so
                self._place(grid, unseen)
            parts, said = [], []
            for unit, at in step:
                if not everywhere.get(unit, True):
                    at = at[_places(asked[unit][at])]  # positions where nothing is coded ask for no network
                own, coded = flat[unit.first : unit.last], codes[unit.first : unit.last]
                if len(at) < h * w:
                    own, coded = _columns(own, at), _columns(coded, at)
                part = Part(unit, at, own, _places(coded.flatten()), h * w, self.order[unit.first : unit.last])
                part.place = places.index_select(0, at)
                if half is not None:
                    part.half = half[unit.first : unit.last]
                    part.half = part.half if len(at) == h * w else _columns(part.half, at)
                parts.append(part)
                if unit in self.networks:
                    said.append((part, *self.networks[unit](ratio, hidden, at, part.place, given.quality_code)))
                else:
                    none = torch.zeros(part.coded.size, dtype=torch.float32, device=self.device)
                    self._choose([part], part.coded_index, none)
            if said:
                self._refine(*zip(*said, strict=True))
            yield parts
            unseen = parts if self.networks else []

    def _refine(self, parts: Sequence[Part], shifts: Sequence[Tensor], changes: Sequence[Tensor]) -> None:
        """Tables and shifts of some units' latents; all sums and products of integers below 2**24."""
        old = _joined([part.coded_index for part in parts])
        shift, change = (_coded(parts, x) for x in (shifts, changes))
        scale = self.ladder.scale.index_select(0, old)
        offset = torch.floor(shift * scale * 2.0**-SHIFT_BITS + 0.5)
        refined = (old + torch.floor(change * 2.0**-SHIFT_BITS + 0.5)).clamp_(0, self.scales - 1).int()
        grain, inverse = (t.index_select(0, refined) for t in self._by_scale[:2])
        self._choose(parts, refined, torch.floor((offset + torch.floor(grain * 0.5)) * inverse) * grain)

    def _choose(self, parts: Sequence[Part], refined: Tensor, offset: Tensor) -> None:
        """Tables and whole steps from refined scale indices and shifts in 64ths, multiples of the grain."""
        halves = [part.half for part in parts if part.half is not None]
        shown = offset - HALF * _coded(parts, halves) if halves else offset
        table, whole, fraction = (x.to(torch.int16).cpu().numpy() for x in self.rows(refined, shown))
        first = 0
        for part in parts:
            own = slice(first, first + part.coded.size)
            part.scale, part.offset = refined[own], offset[own]
            part.table, part.whole, part.mirrored = table[own].astype(np.uint16), whole[own], fraction[own] < 0
            first = own.stop

    def _place(self, grid: Tensor, parts: Sequence[Part]) -> None:
        """Make the symbols of some parts known to the next ones, in units of their scales."""
        channels = torch.arange(self.latents, device=self.device)[:, None]
        places = [part.place * self.latents + channels[part.unit.first : part.unit.last] for part in parts]
        halves = [part.half for part in parts if part.half is not None]
        r = self._ratio(
            torch.from_numpy(_all(parts, "symbols")).to(self.device),
            _joined([part.coded_index for part in parts]),
            _coded(parts, halves) if halves else None,
        )
        grid.view(-1).index_copy_(0, _coded(parts, places), r)

    def _ratio(self, q: Tensor, index: Tensor, half: Tensor | None) -> Tensor:
        """Symbols, int32, in units of their scales."""
        q = q.clamp(-256, 256)
        reciprocal = self.ladder.reciprocal.index_select(0, index.flatten().int()).reshape(q.shape)
        bits = RECIPROCAL_BITS
        if half is not None:
            q, bits = 2 * q + half, bits + 1
        r = (q * reciprocal + 2 ** (bits - 1)) >> bits
        limited: Tensor = r.clamp_(-RATIO_LIMIT, RATIO_LIMIT).to(torch.float32)
        return limited

    def _steps(self, h: int, w: int, steps: int | None = None, tiles: int = 1) -> Iterator[list[tuple[Unit, Tensor]]]:
        """Which units are coded together, and where: the one schedule of encoder and decoder."""
        row = torch.arange(h, device=self.device)[:, None] % (h // tiles)
        column = torch.arange(w, device=self.device)
        if self.units[0].causal:
            # Two rows up and two columns to the right are known before: waves of x + 3 y.
            wave = (column + 3 * row).flatten()
            waves = torch.split(torch.argsort(wave, stable=True), torch.bincount(wave).tolist())
            for now in range(len(waves) + self.units[-1].step):
                known = [(u, waves[now - u.step]) for u in self.units if 0 <= now - u.step < len(waves)]
                if known:
                    yield known
            return
        for step in sorted({u.step for u in self.units})[:steps]:
            here = [u for u in self.units if u.step == step]
            yield [(u, _at(row + column, u.parity)) for u in here]


@dataclass(frozen=True)
class Given:
    """What is known of y before it is read.

    ``index`` (M, h, w) and ``hidden`` (hyper_channels, h, w) come from h_s; tables below ``skip`` code
    nothing; ``lattice`` tells which latents lie half a step above their symbols.  In a scan of a progressive
    file ``known`` (M, h, w) has the symbols of earlier scans, those with indices from ``limit`` on.
    ``tiles`` of one size may be decoded at a time: they lie one below the other, and know nothing of each other.
    """

    index: Tensor
    hidden: Tensor
    quality_code: int
    skip: int
    lattice: Cosets | None = None
    limit: int = 255
    known: Symbols | None = None
    tiles: int = 1

    def codes(self, index: Tensor) -> Tensor:
        """Whether latents with these indices are coded."""
        return (index >= self.skip) & (index < self.limit)


_NONE = np.zeros(0, np.int32)


@dataclass
class Part:
    """A unit's latents in one pass: which are coded, with which tables, around which shifted means.

    ``at`` are flat positions of a grid of ``size``, ``index`` (channels, P); ``places`` tell where the
    coded latents lie among ``channels`` and positions, and what follows is of the coded ones only.  A
    negative fraction of a step (``mirrored``) is coded with the table of the positive one.  ``half``
    (channels, P) is 1 where the latent lies half a step above its symbol.  ``scale`` and ``offset`` are
    what the network says: a scale index, and a shift in 64ths of a step.  ``place`` (P,) says where the
    positions lie in the grid that networks see.
    """

    unit: Unit
    at: Tensor
    index: Tensor
    places: Tensor
    size: int
    channels: NDArray[np.intp]
    half: Tensor | None = None
    table: NDArray[np.uint16] = field(default_factory=lambda: _NONE.astype(np.uint16))
    whole: NDArray[np.int16] = field(default_factory=lambda: _NONE.astype(np.int16))
    mirrored: NDArray[np.bool_] = field(default_factory=lambda: _NONE.astype(np.bool_))
    symbols: NDArray[np.int32] = field(default_factory=lambda: _NONE)

    def __post_init__(self) -> None:
        self.coded: NDArray[np.intp] = self.places.cpu().numpy()
        self.scale = self.offset = self.place = torch.zeros(0)

    @cached_property
    def target(self) -> NDArray[np.intp]:
        """Flat indices of the coded latents among all (M, h, w)."""
        rows = self.channels * self.size
        found: NDArray[np.intp] = np.add.outer(rows, self.at.cpu().numpy()).ravel().take(self.coded)
        return found

    @property
    def coded_values(self) -> NDArray[np.int32]:
        """The symbols as they are coded: relative to the shifted means."""
        relative = self.symbols - self.whole
        return np.where(self.mirrored, -relative, relative)

    @cached_property
    def coded_index(self) -> Tensor:
        """Scale indices of the coded latents, int32."""
        return self.index.flatten().index_select(0, self.places).int()


class _Streams:
    """The coders of tiles that lie one below the other on so many positions."""

    def __init__(self, coders: Sequence[SymbolDecoder], positions: int) -> None:
        self.coders, self.positions = coders, positions

    def __call__(self, target: NDArray[np.intp], table: NDArray[np.uint16], tables: Tables) -> Symbols:
        """What is coded of latents (flat), each in the stream of its tile."""
        if len(self.coders) == 1:
            return self.coders[0].decode(table, tables)
        owner = target % self.positions // (self.positions // len(self.coders))
        values = np.empty(target.size, np.int16)
        for number, coder in enumerate(self.coders):
            own = (owner == number).nonzero()[0]
            values[own] = coder.decode(table.take(own), tables)
        return values


def _decode_groups(
    read: _Streams,
    target: NDArray[np.intp],
    table: NDArray[np.uint16],
    whole: NDArray[np.int16],
    mirrored: NDArray[np.bool_],
    lattice: Cosets,
    tables: Tables,
    known: Symbols,
) -> Symbols:
    """A pass's values; ``known`` (flat) are the symbols of earlier passes, and takes some of this one's."""
    groups = lattice.group_of_last.take(target)
    free, last = np.flatnonzero(groups < 0), np.flatnonzero(groups >= 0)
    both = tables.with_parities()
    values = np.zeros(target.size, np.int16)
    values[free] = read(target.take(free), table.take(free), both)
    known[target] = np.where(mirrored, -values, values) + whole  # last ones are not asked for until they are right
    odd = lattice.odd(known, groups.take(last)) ^ (whole.take(last) % 2 == 1)
    values[last] = read(target.take(last), _of_parity(table.take(last), odd, len(tables)), both)
    return values


def _of_parity(table: NDArray[np.uint16], odd: NDArray[np.bool_], count: int) -> NDArray[np.uint16]:
    """The tables for even or odd values only, of ``count`` tables with their parities."""
    chosen: NDArray[np.uint16] = (table + np.where(odd, 2 * count, count)).astype(np.uint16)
    return chosen


def _all(parts: Sequence[Part], name: str) -> Any:
    """What all parts of a pass have of something, one after the other."""
    if len(parts) == 1:
        return getattr(parts[0], name)
    return np.concatenate([getattr(part, name) for part in parts])


def _columns(x: Tensor, at: Tensor) -> Tensor:
    """x[:, at]; on CPUs by NumPy, which takes a fifth of torch's time for it."""
    if x.device.type == "cpu":
        return torch.from_numpy(x.numpy().take(at.numpy(), axis=1))
    return x.index_select(1, at)


def _places(mask: Tensor) -> Tensor:
    """Where a mask (n,) is true."""
    return torch.from_numpy(np.flatnonzero(mask.numpy())) if mask.device.type == "cpu" else mask.nonzero()[:, 0]


def _coded(parts: Sequence[Part], values: Sequence[Tensor]) -> Tensor:
    """What is said of the coded latents of some parts, one part after the other."""
    return _joined([x.flatten().index_select(0, part.places) for part, x in zip(parts, values, strict=True)])


def _joined(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.cat(list(values))


def _at(parities: Tensor, parity: int | None) -> Tensor:
    wanted = torch.ones_like(parities) if parity is None else parities % 2 == parity
    return wanted.flatten().nonzero()[:, 0]

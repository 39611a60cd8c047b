"""Context models in integers: the same refined probabilities on every machine.

A context model says in which order latents are coded, and, of each, around which shifted mean and with
which table.  Its networks are in :mod:`pillow_lic.entropy.units`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pillow_lic.entropy.coder import LIMIT, SymbolDecoder, SymbolEncoder, Symbols
from pillow_lic.entropy.exact import ACTIVATION_BITS
from pillow_lic.entropy.ladder import FRACTION, HALF, Ladder
from pillow_lic.entropy.passes import MARGIN, Given, Pass, Places, Schedule, Wave, parities, waves
from pillow_lic.entropy.tables import Tables
from pillow_lic.entropy.units import ExactUnit, rounded
from pillow_lic.models.context.schedule import Unit, view_of
from pillow_lic.quantizers.cosets import Cosets


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
        self.units, self.device = tuple(units), device
        self.latents = max(u.last for u in units)
        self.order = np.array(range(self.latents) if order is None else order, np.intp)
        self.ladder = Ladder.load(tensors, scales)
        first = self.ladder.first_table
        self.tables = self._load_tables(tensors, "tables", first[-1])
        self.lattice_tables = self._load_tables(tensors, "lattice", first[-1])
        if self.lattice_tables and int(self.ladder.grain.max()) > HALF:
            raise ValueError("the model's lattice tables know no half steps")
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
        for part in self._known(symbols, given):
            values, table = part.coded_values, part.table
            if lattice is None:
                coder.encode(values, table, tables)
                continue
            # The last of a group knows whether it is even; all the others come first.
            last = lattice.group_of_last.take(part.target) >= 0
            both = tables.with_parities()
            coder.encode(values[~last], table[~last], both)
            coder.encode(values[last], _of_parity(table[last], values[last] % 2 == 1, len(tables)), both)

    def seen(self, symbols: Symbols, given: Given) -> Iterator[tuple[NDArray[np.int32], NDArray[np.uint16]]]:
        """What is coded, pass by pass: values relative to the shifted means, and their tables."""
        for part in self._known(symbols, given):
            yield part.coded_values, part.table

    def conditions(self, symbols: Symbols, given: Given) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
        """Scale index and shift of the mean in 64ths of a step of every latent (M, h, w), given all that
        the symbols say before it; zeros where none is coded.
        """
        shape = given.index.shape
        scale, offset = np.zeros(shape, np.int16), np.zeros(shape, np.int32)
        for part in self._known(symbols, given):
            scale.put(part.target, part.scale)
            offset.put(part.target, part.offset)
        return scale, offset

    def _known(self, symbols: Symbols, given: Given) -> Iterator[Pass]:
        """Each pass with the symbols that it has."""
        for part in self._passes(given):
            part.symbols = symbols.take(part.target).astype(np.int32)
            yield part

    def decode(self, coders: Sequence[SymbolDecoder], given: Given, channels: int | None = None) -> Symbols:
        """Read the symbols of y, (M, h, w), of tiles with a coder each; ``OSError`` if there is one that no encoder
        writes.

        Only as many steps of the schedule as it takes to know the first ``channels``; what is not read is 0.
        """
        tables, shape, lattice = self.tables_for(given.lattice), given.index.shape, self.in_order(given)
        read = _Streams(coders, shape[1] * shape[2])
        symbols = np.zeros(shape, np.int16) if given.known is None else given.known.copy()
        flat = symbols.reshape(-1)
        for part in self._passes(given, None if channels is None else self.steps_for(channels)):
            if lattice is None:
                values = read(part.target, part.table, tables)
            else:
                values = _decode_groups(read, part, lattice, tables, flat)
            found = np.where(part.mirrored, -values, values).astype(np.int32) + part.whole
            if found.size and int(np.abs(found).max()) > LIMIT:
                raise OSError("damaged LIC file: a symbol is out of range")
            flat[part.target] = part.symbols = found
        return symbols

    def in_order(self, given: Given) -> Cosets | None:
        """The groups of a lattice, with those last that the schedule brings last."""
        if given.lattice is None or (order := self._order_of(given)) is None:
            return given.lattice
        return given.lattice.coded_by(order)

    def _order_of(self, given: Given) -> NDArray[np.int32] | None:
        """In which pass latents come, (M, h, w); None if there is one."""
        _, h, w = given.index.shape
        shape = given.tiles, h // given.tiles, w
        if self.units[0].causal:
            return self._steps(*shape) + waves(*shape).astype(np.int32)
        return None if len({unit.step for unit in self.units}) == 1 else self._steps(*shape)

    def _steps(self, tiles: int, height: int, width: int) -> NDArray[np.int32]:
        """In which step of the schedule latents come, (M, tiles height, width)."""
        even, odd = np.zeros((2, self.latents, 1, 1), np.int32)
        for unit in self.units:
            for parity, step in enumerate((even, odd)):
                if unit.parity in (None, parity):
                    step[self.order[unit.first : unit.last]] = unit.step
        return np.where(parities(tiles, height, width), odd, even)

    def steps_for(self, channels: int) -> int:
        """How many steps of the schedule it takes to know the first so many channels."""
        return 1 + max(u.step for u in self.units if bool((self.order[u.first : u.last] < channels).any()))

    def beyond(self, channels: int, tiles: int, height: int, width: int) -> NDArray[np.bool_]:
        """Which latents (M, n h, w) of n tiles are not read where only the first ``channels`` are asked for."""
        if self.units[0].causal:
            return np.zeros((self.latents, tiles * height, width), np.bool_)
        return self._steps(tiles, height, width) >= self.steps_for(channels)

    def _passes(self, given: Given, steps: int | None = None) -> Iterator[Pass]:
        """Each pass of the range coder in turn; whoever iterates fills in its symbols."""
        schedule = Schedule(self.units, self.order, given, steps, placed=bool(self.networks))
        if not self.networks:
            for _, part in schedule:
                self._choose(part, part.index, np.zeros(part.index.size, np.int32))
                yield part
            return
        # Multiplying by whole powers of two and rounding down: exact in float64 and float32 alike.
        hidden = rounded(given.hidden.flatten(1).t(), 2.0 ** (FRACTION - ACTIVATION_BITS)).to(torch.float32)
        hidden = hidden.contiguous()
        grid = self._grid(given)
        unseen: Pass | None = None
        for work, part in schedule:
            if unseen is not None:  # what comes last of all stays so
                self._place(grid, unseen)
            if any(unit in self.networks for unit, _ in work):
                answers = [self._answer(grid, hidden, unit, where, given.quality_code) for unit, where in work]
                assert part.answer is not None
                said = torch.cat([x.flatten(1) for x in answers], dim=1).index_select(1, part.answer)
                self._refine(part, *said.cpu().numpy().astype(np.int32))
            else:
                self._choose(part, part.index, np.zeros(part.index.size, np.int32))
            yield part
            unseen = part

    def _answer(self, grid: Tensor, hidden: Tensor, unit: Unit, where: Places | Wave, quality_code: int) -> Tensor:
        """What a unit's network says of its latents, (2, channels, P): nothing, if it has none."""
        if unit in self.networks:
            return self.networks[unit](grid, hidden, where, quality_code)
        return torch.zeros((2, unit.last - unit.first, len(where)), dtype=torch.float32, device=self.device)

    def _grid(self, given: Given) -> Tensor:
        """What networks see before anything is read, (n (height + 4), width + 4, 2, M): symbols and their magnitudes in
        units of their scales.
        """
        m, h, w = given.index.shape
        rows = h + 2 * MARGIN * given.tiles
        grid = torch.zeros((rows, w + 2 * MARGIN, 2, m), dtype=torch.float32, device=self.device)
        if given.known is not None:  # in scans, which have one tile
            inner = grid[MARGIN:-MARGIN, MARGIN:-MARGIN].permute(2, 3, 0, 1)
            inner[0] = torch.from_numpy(self._known_ratios(given)[self.order]).to(self.device)
            inner[1] = inner[0].abs()
        return grid

    def _known_ratios(self, given: Given) -> NDArray[np.int32]:
        """The symbols of earlier scans, (M, h, w), in units of their scales."""
        assert given.known is not None
        index = given.index.cpu().numpy().astype(np.int32)
        half = None if given.lattice is None else (given.lattice.half & (index >= given.limit)).astype(np.int32)
        return self.ladder.ratios(given.known.astype(np.int32), index, half)

    def _refine(self, part: Pass, shift: NDArray[np.int32], change: NDArray[np.int32]) -> None:
        """A pass's tables and shifts from what networks say (n,)."""
        self._choose(part, *self.ladder.refined(part.index, shift, change))

    def _choose(self, part: Pass, scale: NDArray[np.int32], offset: NDArray[np.int32]) -> None:
        """Tables and whole steps from scale indices and shifts in 64ths of a step."""
        part.scale, part.offset = scale, offset
        shown = offset if part.half is None else offset - HALF * part.half
        table, part.whole, fraction = self.ladder.rows(scale, shown)
        part.table, part.mirrored = table.astype(np.uint16), fraction < 0

    def _place(self, grid: Tensor, part: Pass) -> None:
        """Make a pass's symbols known to the next ones, in units of their scales."""
        ratio = self.ladder.ratios(part.symbols, part.index, part.half)
        found = torch.from_numpy(ratio.astype(np.float32)).to(self.device)
        grid.view(-1).index_copy_(0, part.place, found).index_copy_(0, part.place + self.latents, found.abs())


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


def _decode_groups(read: _Streams, part: Pass, lattice: Cosets, tables: Tables, known: Symbols) -> Symbols:
    """A pass's values; ``known`` (flat) are the symbols of earlier passes, and takes some of this one's."""
    target, table, whole = part.target, part.table, part.whole
    groups = lattice.group_of_last.take(target)
    free, last = np.flatnonzero(groups < 0), np.flatnonzero(groups >= 0)
    both = tables.with_parities()
    values = np.zeros(target.size, np.int16)
    values[free] = read(target.take(free), table.take(free), both)
    known[target] = np.where(part.mirrored, -values, values) + whole  # of last ones what lies below their values
    odd = lattice.odd(known, groups.take(last))
    values[last] = read(target.take(last), _of_parity(table.take(last), odd, len(tables)), both)
    return values


def _of_parity(table: NDArray[np.uint16], odd: NDArray[np.bool_], count: int) -> NDArray[np.uint16]:
    """The tables for even or odd values only, of ``count`` tables with their parities."""
    chosen: NDArray[np.uint16] = (table + np.where(odd, 2 * count, count)).astype(np.uint16)
    return chosen

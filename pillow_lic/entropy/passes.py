"""The order of coding: which latents each pass of the range coder takes, and where they lie.

Encoder and decoder follow the same :class:`Schedule`, in which nothing depends on symbols.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pillow_lic.entropy.coder import Symbols
from pillow_lic.models.context.schedule import TAPS, Unit
from pillow_lic.quantizers.cosets import Cosets

MARGIN = TAPS // 2
"""Positions around a tile that windows see: zeros."""


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

    def codes(self, index: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Whether latents with these indices are coded."""
        found: NDArray[np.bool_] = (index >= self.skip) & (index < self.limit)
        return found


@dataclass
class Pass:
    """Latents that are coded together: with which tables, around which shifted means.

    ``target`` are flat indices among all (M, h, w), ``index`` scale indices; ``half`` is 1 where a latent lies
    half a step above its symbol.  ``place`` tells where latents lie in the grid that networks see, ``said`` where among
    the networks' answers.  ``scale`` and ``offset`` are what these say: a scale index, and a shift in 64ths of a step.
    A negative fraction of a step (``mirrored``) is coded with the table of the positive one.  All are of n latents.
    """

    target: NDArray[np.intp]
    index: NDArray[np.int32]
    half: NDArray[np.int32] | None
    place: Tensor
    said: Tensor
    scale: NDArray[np.int32] = field(init=False)
    offset: NDArray[np.int32] = field(init=False)
    table: NDArray[np.uint16] = field(init=False)
    whole: NDArray[np.int32] = field(init=False)
    mirrored: NDArray[np.bool_] = field(init=False)
    symbols: NDArray[np.int32] = field(init=False)

    def part(self, own: slice) -> Pass:
        """Some of the latents, of which nothing is said yet."""
        half = None if self.half is None else self.half[own]
        return replace(
            self, target=self.target[own], index=self.index[own], half=half, place=self.place[own], said=self.said[own]
        )

    @property
    def coded_values(self) -> NDArray[np.int32]:
        """The symbols as they are coded: relative to the shifted means."""
        relative = self.symbols - self.whole
        return np.where(self.mirrored, -relative, relative)


@dataclass(frozen=True)
class Places:
    """Positions, flat ones ``at`` and ``padded`` ones in a grid with margins."""

    at: Tensor
    padded: Tensor

    def __len__(self) -> int:
        return len(self.at)

    def of(self, values: Tensor) -> Tensor:
        """What belongs to them of (positions, ...)."""
        return values.index_select(0, self.at)

    def within(self, grid: Tensor) -> Tensor:
        """What belongs to them of a grid with margins (rows, columns, ...)."""
        return grid.flatten(0, 1).index_select(0, self.padded)


@dataclass(frozen=True)
class Wave:
    """The positions of one wave of column + 3 row in n tiles: in each, ``rows`` of them from (``top``, ``left``) on.

    Each lies a row below and three columns left of the one before, so that views of grids show them.
    """

    tiles: int
    rows: int
    top: int
    left: int
    height: int
    width: int

    def __len__(self) -> int:
        return self.tiles * self.rows

    def of(self, values: Tensor) -> Tensor:
        """What belongs to them of (positions, channels), (P, channels)."""
        _, channels = values.shape
        size = (self.tiles, self.rows, channels)
        # Where tiles are so narrow that this is no step ahead, waves have one row.
        strides = (self.height * self.width * channels, max(self.width - 3, 0) * channels, 1)
        return values.as_strided(size, strides, (self.top * self.width + self.left) * channels).flatten(0, 1)

    def within(self, grid: Tensor) -> Tensor:
        """What belongs to them of a grid with margins (rows, columns, 2, channels), (P, 2, channels)."""
        return self.windows(grid, MARGIN, 1, MARGIN, 1)[0, 0].flatten(0, 1)

    def windows(self, grid: Tensor, down: int = 0, rows: int = TAPS, right: int = 0, columns: int = TAPS) -> Tensor:
        """Parts of their windows in such a grid, (rows, columns, n, rows of the wave, 2, channels)."""
        kinds, channels = grid.shape[2:]
        row, column, kind, channel = grid.stride()
        size = (rows, columns, self.tiles, self.rows, kinds, channels)
        strides = (row, column, (self.height + 2 * MARGIN) * row, row - 3 * column, kind, channel)
        start = (self.top + down) * row + (self.left + right) * column
        return grid.as_strided(size, strides, grid.storage_offset() + start)


Work = list[tuple[Unit, Places | Wave]]
"""Units that are coded together, and where."""

Latents = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]
"""Channels (as units count them), flat positions and places among the networks' answers."""


class Schedule:
    """All latents that are coded, step by step.

    ``order`` are the channels as units count them; with ``steps`` only those of the first steps, where these
    are no waves.
    """

    def __init__(self, units: Sequence[Unit], order: NDArray[np.intp], given: Given, steps: int | None = None) -> None:
        m, h, w = given.index.shape
        self.device, self.order = given.index.device, order
        self.shape = (given.tiles, h // given.tiles, w)
        self._padded = padded(np.arange(h * w), *self.shape[1:])
        index = given.index.cpu().numpy()
        codes = given.codes(index).reshape(m, -1)
        codes = codes if (np.diff(order) == 1).all() else codes.take(order, axis=0)
        found = self._waves(units, codes) if units[0].causal else self._parities(units, codes, steps)
        self.work, self._ends, (channel, position, said) = found
        target = order.take(channel) * (h * w) + position
        half = None if given.lattice is None else given.lattice.half.ravel().take(target).astype(np.int32)
        self.latents = Pass(
            target,
            index.ravel().take(target).astype(np.int32),
            half,
            self._there(self._padded.take(position) * (2 * m) + channel),
            self._there(said),
        )

    def __iter__(self) -> Iterator[tuple[Work, Pass]]:
        for work, (first, end) in zip(self.work, pairwise((0, *self._ends)), strict=True):
            yield work, self.latents.part(slice(first, end))

    def _there(self, values: NDArray[np.signedinteger]) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _parities(
        self, units: Sequence[Unit], codes: NDArray[np.bool_], steps: int | None
    ) -> tuple[list[Work], list[int], Latents]:
        """Units at the positions of a parity, or at all; where a unit codes nothing it asks for no network."""
        tiles, height, width = self.shape
        parity = np.add.outer(np.arange(tiles * height) % height, np.arange(width)).ravel() % 2
        places = {p: np.flatnonzero(parity == p) for p in (0, 1)}
        everywhere = np.arange(parity.size)
        work: list[Work] = []
        found: list[Latents] = []
        ends: list[int] = []
        for _, together in groupby((u for u in units if steps is None or u.step < steps), lambda u: u.step):
            work.append([])
            answers, end = 0, ends[-1] if ends else 0
            for unit in together:
                at, own = everywhere, codes[unit.first : unit.last]
                if unit.parity is not None:
                    at = places[unit.parity]
                    own = own.take(at, axis=1)
                if not (asked := own.any(axis=0)).all():
                    at, own = at[asked], own[:, asked]
                said = np.flatnonzero(own)
                channel = said // max(1, at.size)
                found.append((channel + unit.first, at.take(said - channel * at.size), said + answers))
                answers, end = answers + own.size, end + said.size
                work[-1].append((unit, Places(self._there(at), self._there(self._padded.take(at)))))
            ends.append(end)
        return work, ends, _joined(found)

    def _waves(self, units: Sequence[Unit], codes: NDArray[np.bool_]) -> tuple[list[Work], list[int], Latents]:
        """Causal units: two rows up and two columns to the right are known before."""
        tiles, height, width = self.shape
        tile, row, column = np.unravel_index(np.arange(codes.shape[1]), self.shape)
        wave = column + 3 * row
        number = np.arange(width + 3 * (height - 1))
        top = np.maximum(0, (number - width + 3) // 3)
        rows = np.minimum(height - 1, number // 3) + 1 - top
        waves = [
            Wave(tiles, n, t, k - 3 * t, height, width)
            for k, (n, t) in enumerate(zip(rows.tolist(), top.tolist(), strict=True))
        ]
        last = number.size + units[-1].step
        work: list[Work] = [
            [(u, waves[now - u.step]) for u in units if 0 <= now - u.step < number.size and waves[now - u.step].rows]
            for now in range(last)
        ]
        answers = np.zeros(last, np.intp)
        found: list[Latents] = []
        steps = []
        for unit in units:
            channel, position = codes[unit.first : unit.last].nonzero()
            own = wave.take(position)
            rank = (tile * rows.take(wave) + row - top.take(wave)).take(position)
            steps.append(own + unit.step)
            said = answers.take(steps[-1]) + channel * (tiles * rows).take(own) + rank
            found.append((channel + unit.first, position, said))
            answers[unit.step : unit.step + number.size] += (unit.last - unit.first) * tiles * rows
        step = np.concatenate(steps)
        order = np.argsort(step, kind="stable")
        channel, position, said = (x.take(order) for x in _joined(found))
        return work, np.bincount(step, minlength=last).cumsum().tolist(), (channel, position, said)


def _joined(found: Sequence[Latents]) -> Latents:
    channel, position, said = (np.concatenate(x) for x in zip(*found, strict=True))
    return channel, position, said


def padded(at: NDArray[np.intp], height: int, width: int) -> NDArray[np.intp]:
    """Flat positions in a grid with a margin of two around each tile (height, width) from those without margins."""
    row = at // width
    above = MARGIN + 2 * MARGIN * (row // height)
    found: NDArray[np.intp] = at + 2 * MARGIN * row + above * (width + 2 * MARGIN) + MARGIN
    return found

"""The order of coding: which latents each pass of the range coder takes, and where they lie.

Encoder and decoder follow the same :class:`Schedule`, in which nothing depends on symbols.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

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

    ``target`` are flat indices among all (M, h, w), ``index`` scale indices; ``half`` is 1 where a latent lies half a
    step above its symbol.  ``place`` tells where latents lie in the grid that networks see, ``answer`` where among what
    these say: ``scale``, a scale index, and ``offset``, a shift in 64ths of a step.  A negative fraction of a step
    (``mirrored``) is coded with the table of the positive one.  All are of n latents.
    """

    target: NDArray[np.intp]
    index: NDArray[np.int32]
    half: NDArray[np.int32] | None
    place: Tensor
    answer: Tensor | None = None
    scale: NDArray[np.int32] = field(init=False)
    offset: NDArray[np.int32] = field(init=False)
    table: NDArray[np.uint16] = field(init=False)
    whole: NDArray[np.int32] = field(init=False)
    mirrored: NDArray[np.bool_] = field(init=False)
    symbols: NDArray[np.int32] = field(init=False)

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
        position, channel = values.stride()
        size = (self.tiles, self.rows, values.shape[1])
        # Where tiles are so narrow that this is no step ahead, waves have one row.
        strides = (self.height * self.width * position, max(self.width - 3, 0) * position, channel)
        start = (self.top * self.width + self.left) * position
        return values.as_strided(size, strides, values.storage_offset() + start).flatten(0, 1)

    def within(self, grid: Tensor) -> Tensor:
        """What belongs to them of a grid with margins (rows, columns, 2, channels), (P, 2, channels)."""
        return self.windows(grid, MARGIN, 1, MARGIN, 1)[0, 0].flatten(0, 1)

    def windows(self, grid: Tensor, down: int = 0, high: int = TAPS, right: int = 0, wide: int = TAPS) -> Tensor:
        """Parts of their windows in such a grid, (high, wide, n, rows, 2, channels)."""
        kinds, channels = grid.shape[2:]
        row, column, kind, channel = grid.stride()
        size = (high, wide, self.tiles, self.rows, kinds, channels)
        strides = (row, column, (self.height + 2 * MARGIN) * row, row - 3 * column, kind, channel)
        start = (self.top + down) * row + (self.left + right) * column
        return grid.as_strided(size, strides, grid.storage_offset() + start)


Work = list[tuple[Unit, Places | Wave]]
"""Units that are coded together, and where."""


class Schedule:
    """All latents that are coded, step by step.

    ``order`` are the channels as units count them; with ``steps`` only those of the first steps, where these
    are no waves.  Where no network asks, nothing needs to be ``placed``.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        order: NDArray[np.intp],
        given: Given,
        steps: int | None = None,
        *,
        placed: bool = True,
    ) -> None:
        m, h, w = given.index.shape
        self._placed = placed
        self._units, self._order, self._steps = units, order, steps
        self._device, self._latents = given.index.device, m
        self._shape = (given.tiles, h // given.tiles, w)
        self._padded = padded(np.arange(h * w), *self._shape[1:])
        index = given.index.cpu().numpy()
        self._index = index.ravel()
        self._half = None if given.lattice is None else given.lattice.half.ravel()
        codes = given.codes(index).reshape(m, -1)
        self._codes = codes if (np.diff(order) == 1).all() else codes.take(order, axis=0)

    def __iter__(self) -> Iterator[tuple[Work, Pass]]:
        for step in self._waves() if self._units[0].causal else self._parities():
            yield self._coded(step)

    def _coded(self, step: list[_Part]) -> tuple[Work, Pass]:
        work: Work = []
        targets, places, answers, said = [], [], [], 0
        for unit, at, codes, where in step:
            found = np.flatnonzero(codes)
            if not found.size:  # who codes nothing asks for no network
                continue
            channel = found // at.size
            position = at.take(found - channel * at.size)
            channel += unit.first
            targets.append(self._order.take(channel) * self._padded.size + position)
            if self._placed:
                places.append(self._padded.take(position) * (2 * self._latents) + channel)
                answers.append(found + said)
            said += codes.size
            work.append((unit, where))
        target = _joined(targets)
        half = None if self._half is None else self._half.take(target).astype(np.int32)
        index = self._index.take(target).astype(np.int32)
        return work, Pass(target, index, half, self._there(_joined(places)), self._there(_joined(answers)))

    def _there(self, values: NDArray[np.intp]) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def _parities(self) -> Iterator[list[_Part]]:
        """Units at the positions of a parity, or at all, without those where they code nothing."""
        parity = parities(*self._shape).ravel()
        places = {p: np.flatnonzero(parity == p) for p in (0, 1)}
        everywhere = np.arange(parity.size)
        units = [u for u in self._units if self._steps is None or u.step < self._steps]
        for _, together in groupby(units, lambda unit: unit.step):
            step: list[_Part] = []
            for unit in together:
                at, codes = everywhere, self._codes[unit.first : unit.last]
                if unit.parity is not None:
                    at = places[unit.parity]
                    codes = codes.take(at, axis=1)
                if not (asked := codes.any(axis=0)).all():
                    at, codes = at[asked], codes[:, asked]
                step.append((unit, at, codes, Places(self._there(at), self._there(self._padded.take(at)))))
            yield step

    def _waves(self) -> Iterator[list[_Part]]:
        """Causal units: two rows up and two columns to the right are known before."""
        tiles, height, width = self._shape
        order = np.argsort(waves(*self._shape).ravel(), kind="stable")  # in a wave by tile, then by row
        codes = self._codes.take(order, axis=1)
        number = np.arange(width + 3 * (height - 1))
        top = np.maximum(0, (number - width + 3) // 3)
        rows = np.minimum(height - 1, number // 3) + 1 - top
        ends = np.cumsum(rows * tiles)
        for now in range(number.size + self._units[-1].step):
            step: list[_Part] = []
            for unit in self._units:
                if 0 <= (k := now - unit.step) < number.size and rows[k]:
                    own = slice(int(ends[k]) - tiles * int(rows[k]), int(ends[k]))
                    where = Wave(tiles, int(rows[k]), int(top[k]), k - 3 * int(top[k]), height, width)
                    step.append((unit, order[own], codes[unit.first : unit.last, own], where))
            yield step


_Part = tuple[Unit, NDArray[np.intp], NDArray[np.bool_], Places | Wave]
"""A unit, its flat positions, what is coded there, (channels, P), and the positions for networks."""


def _joined(parts: list[NDArray[np.intp]]) -> NDArray[np.intp]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, np.intp)


def parities(tiles: int, height: int, width: int) -> NDArray[np.intp]:
    """Whether positions of tiles (height, width), one below the other, are even or odd, (tiles height, width)."""
    return waves(tiles, height, width) % 2


def waves(tiles: int, height: int, width: int) -> NDArray[np.intp]:
    """In which wave of column + 3 row such positions are, each in its own tile."""
    return np.add.outer(3 * (np.arange(tiles * height) % height), np.arange(width))


def padded(at: NDArray[np.intp], height: int, width: int) -> NDArray[np.intp]:
    """Flat positions in a grid with a margin of two around each tile (height, width) from those without margins."""
    row = at // width
    above = MARGIN + 2 * MARGIN * (row // height)
    found: NDArray[np.intp] = at + 2 * MARGIN * row + above * (width + 2 * MARGIN) + MARGIN
    return found

"""Probability tables: integer frequencies that sum to 2**24, one table for each scale index.

Context models shift means by fractions of a step, so they have a table for each scale index and
*phase*, the fraction that is left of the shift.  Tables travel with the model and are part of its
identity, so that no decoder ever computes a probability.  :mod:`pillow_lic.training.probabilities`
makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

PRECISION = 24
TOTAL = 2**PRECISION


class Tables:
    """Tables over the symbols -reach...reach and an escape.

    ``frequencies`` has one array of 2 * reach + 2 integers a table; ``skip`` says how many of the
    first tables code nothing: their symbols are zero.  Raises ``ValueError`` for numbers that are
    no such tables.
    """

    def __init__(self, frequencies: Sequence[NDArray[np.int64]], skip: int = 0) -> None:
        if not 0 <= skip < len(frequencies):
            raise ValueError("the model skips all of its probability tables")
        for table in frequencies:
            if not 2 <= table.size <= 2**15 or table.size % 2 or int(table.min()) < 1 or int(table.sum()) != TOTAL:
                raise ValueError("a probability table has a frequency below 1 or does not sum to 2**24, or too many")
        self.skip = skip
        self.frequencies = list(frequencies)
        self.reach: NDArray[np.int32] = np.array([table.size // 2 - 1 for table in frequencies], np.int32)
        self._with_parities: Tables | None = None
        self._models: list[Any] = [None] * len(self.frequencies)

    @classmethod
    def mirrored(cls, frequencies: NDArray[np.int32], lengths: NDArray[np.int32], skip: int) -> Tables:
        """Tables of which ``frequencies`` holds those of 0, 1, ... reach and of the escape, one after
        the other, ``lengths`` (reach + 2) numbers each; negative symbols have the same ones.
        """
        return cls([_mirror(half) for half in _split(frequencies, lengths)], skip)

    @classmethod
    def whole(cls, frequencies: NDArray[np.int32], lengths: NDArray[np.int32]) -> Tables:
        """Tables of which ``frequencies`` holds everything."""
        return cls(_split(frequencies, lengths))

    def __len__(self) -> int:
        return len(self.reach)

    def with_parities(self) -> Tables:
        """These tables, then each for even values only, then each for odd ones.

        Frequencies of the other parity become 1; the rest is scaled up and rounded down, and the largest
        takes what is left.
        """
        if self._with_parities is None:
            split = [_of_parity(table, parity) for parity in (0, 1) for table in self.frequencies]
            self._with_parities = Tables([*self.frequencies, *split])
        return self._with_parities

    def models(self, wanted: Sequence[int]) -> list[Any]:
        """The range coder's models of some tables."""
        return [self._models[table] or self._model(table) for table in wanted]

    def _model(self, table: int) -> Any:
        # constriction adds one to every weight of a Categorical and scales the rest to fill 2**24; weights that fill
        # it already stay the integers they are (tested against an independent range decoder).
        weights = (self.frequencies[table] - 1).astype(np.float32)
        self._models[table] = constriction.stream.model.Categorical(weights, perfect=False)
        return self._models[table]

    def bits(self, symbols: NDArray[np.integer], indices: NDArray[np.unsignedinteger]) -> NDArray[np.float64]:
        """Ideal code length of each symbol; tails of escapes with their own bits."""
        out = np.zeros(symbols.shape)
        for table in range(self.skip, len(self)):
            here = indices == table
            if here.any():
                out[here] = self.bits_of(symbols[here], table)
        return out

    def bits_of(self, symbols: NDArray[np.integer], table: int) -> NDArray[np.float64]:
        """Ideal code length of symbols that all use one table."""
        values, reach = symbols.astype(np.int64), int(self.reach[table])
        escaped = np.abs(values) > reach
        position = np.where(escaped, 2 * reach + 1, values + reach)
        cost = PRECISION - np.log2(self.frequencies[table][position])
        beyond = (np.abs(values) - reach - 1) * 2 + (values < 0) + 1
        tail = 4 + np.floor(np.log2(np.maximum(beyond, 1)))
        bits: NDArray[np.float64] = cost + np.where(escaped, tail, 0.0)
        return bits


def _split(frequencies: NDArray[np.int32], lengths: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    if not 1 <= lengths.size <= 2**15 or int(lengths.min()) < 2 or int(lengths.sum()) != frequencies.size:
        raise ValueError("the model's probability tables have impossible lengths")
    return np.split(frequencies.astype(np.int64), np.cumsum(lengths)[:-1])


def _of_parity(frequencies: NDArray[np.int64], parity: int) -> NDArray[np.int64]:
    """A table of -reach...reach and the escape whose values of the other parity hardly ever come."""
    reach = frequencies.size // 2 - 1
    kept = np.append(np.arange(-reach, reach + 1) % 2 == parity, True)
    scaled = np.where(kept, frequencies * TOTAL // frequencies[kept].sum(), 0)
    scaled = np.maximum(scaled, 1)
    scaled[scaled.argmax()] += TOTAL - scaled.sum()
    return scaled


def _mirror(half: NDArray[np.int64]) -> NDArray[np.int64]:
    """Frequencies of -reach...reach and of the escape, from those of 0...reach and the escape."""
    return np.concatenate([half[-2:0:-1], half])

"""Probability tables: integer frequencies that sum to 2**24, one table for each scale index.

The tables travel with the model and are part of its identity, so that no decoder ever computes a
probability.  :mod:`pillow_lic.training.export` makes them.
"""

from __future__ import annotations

import constriction
import numpy as np
from numpy.typing import NDArray

PRECISION = 24
TOTAL = 2**PRECISION


class Tables:
    """The tables of a model.

    ``frequencies`` is flat: for each table the frequencies of symbols 0, 1, ... ``reach``
    (negative symbols have the same ones), then that of the escape.  ``lengths`` holds
    ``reach + 2`` for each table, ``skip`` how many of the first tables code nothing: their
    symbols are zero.  Raises ``ValueError`` for numbers that are no such tables.
    """

    def __init__(self, frequencies: NDArray[np.int32], lengths: NDArray[np.int32], skip: int) -> None:
        if not 1 <= lengths.size <= 256 or int(lengths.min()) < 2 or int(lengths.sum()) != frequencies.size:
            raise ValueError("the model's probability tables have impossible lengths")
        if not 0 <= skip < lengths.size:
            raise ValueError("the model skips all of its probability tables")
        self.skip = skip
        self.reach = [int(n) - 2 for n in lengths]
        self.frequencies = [_mirror(half) for half in np.split(frequencies, np.cumsum(lengths)[:-1])]
        # constriction adds one to every weight of a Categorical and scales the rest to fill
        # 2**24; weights that fill it already stay the integers they are (tested against an
        # independent range decoder).
        self.models = [
            constriction.stream.model.Categorical((f - 1).astype(np.float32), perfect=False) for f in self.frequencies
        ]

    def __len__(self) -> int:
        return len(self.reach)

    def bits(self, symbols: NDArray[np.integer], indices: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Ideal code length of each symbol; tails of escapes with their own bits."""
        out = np.zeros(symbols.shape)
        for table in range(self.skip, len(self)):
            here = indices == table
            if not here.any():
                continue
            values, reach = symbols[here].astype(np.int64), self.reach[table]
            escaped = np.abs(values) > reach
            position = np.where(escaped, 2 * reach + 1, values + reach)
            cost = PRECISION - np.log2(self.frequencies[table][position])
            beyond = (np.abs(values) - reach - 1) * 2 + (values < 0) + 1
            tail = 4 + np.floor(np.log2(np.maximum(beyond, 1)))
            out[here] = cost + np.where(escaped, tail, 0.0)
        return out


def _mirror(half: NDArray[np.int32]) -> NDArray[np.int64]:
    """Frequencies of -reach...reach and of the escape, from those of 0...reach and the escape."""
    values = half.astype(np.int64)
    if int(values.min()) < 1:
        raise ValueError("a probability table has a frequency below 1")
    full = np.concatenate([values[-2:0:-1], values])
    if int(full.sum()) != TOTAL:
        raise ValueError("a probability table does not sum to 2**24")
    return full

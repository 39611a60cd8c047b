"""The grouped range coder: symbols sorted by table, one call to the coder for each table.

Sorting is free compared with what it saves: with one call a table the range coder of the
constriction library spends 20 ns a symbol, with one model a symbol 180.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from pillow_lic.entropy.tables import TOTAL, Tables

Symbols = NDArray[np.int16]
Indices = NDArray[np.uint8] | NDArray[np.uint16]

LIMIT = 2**15 - 1
"""Largest magnitude of a symbol."""

_uniform = constriction.stream.model.Uniform
_prefixes = _uniform(16)


class SymbolEncoder:
    """Collects passes of symbols into one range-coded stream."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def encode(self, symbols: NDArray[np.integer], indices: Indices, tables: Tables) -> None:
        """Append flat ``symbols``, each with the table that ``indices`` names.

        Symbols of tables below ``tables.skip`` are not coded and must be 0.  Raises
        ``ValueError`` for magnitudes above 32767.
        """
        if symbols.size and int(np.abs(symbols).max()) > LIMIT:
            raise ValueError(f"a latent is larger than {LIMIT} steps; use a lower quality")
        order, groups = _group(indices, tables.skip)
        ordered = symbols[order].astype(np.int32)
        reach = tables.reach.take(indices.take(order))
        outside = np.flatnonzero(np.abs(ordered) > reach)
        coded = ordered + reach
        coded[outside] = 2 * reach[outside] + 1
        at = 0
        for (_, count), model in zip(groups, tables.models([table for table, _ in groups]), strict=True):
            self._coder.encode(coded[at : at + count], model)
            at += count
        if outside.size:
            beyond = ordered[outside]
            # Sign in the lowest bit, distance past the table's end above it, plus one.
            self._encode_tail((np.abs(beyond) - reach[outside] - 1) * 2 + (beyond < 0) + 1)

    def encode_bits(self, bits: NDArray[np.uint8], ones: int) -> None:
        """Append bits that are 1 with frequency ``ones`` of 2**24."""
        self._coder.encode(bits.astype(np.int32), _bits(ones))

    def encode_below(self, values: NDArray[np.integer], limit: int) -> None:
        """Append values in 0 ... ``limit`` - 1, a power of two, all equally likely."""
        self._coder.encode(values.astype(np.int32), _uniform(limit))

    def _encode_tail(self, values: NDArray[np.int32]) -> None:
        """Exp-Golomb: the number of bits below the leading one, uniform, then those bits."""
        bits = np.frexp(values.astype(np.float64))[1].astype(np.int32) - 1
        self._coder.encode(bits, _prefixes)  # at most 15, since magnitudes are below 2**15
        some = bits > 0
        if some.any():
            sizes = np.left_shift(1, bits[some]).astype(np.int32)
            self._coder.encode((values[some] - sizes).astype(np.int32), _uniform(), sizes)

    def finish(self) -> bytes:
        """The stream; zero bytes at its end are implied and left out."""
        words: NDArray[np.uint32] = self._coder.get_compressed()
        return words.astype(">u4").tobytes().rstrip(b"\x00")


class SymbolDecoder:
    """Reads back what :class:`SymbolEncoder` wrote, pass by pass, with the same indices and tables.

    Damaged streams give wrong symbols or ``OSError``; the caller compares checksums.
    """

    def __init__(self, data: bytes) -> None:
        padded = data + b"\x00" * (-len(data) % 4)
        words = np.frombuffer(padded, dtype=">u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)

    def decode(self, indices: Indices, tables: Tables) -> Symbols:
        """Symbols for the flat ``indices``; zero where they are skipped."""
        with _damage():
            return self._decode(indices, tables)

    def decode_bits(self, count: int, ones: int) -> NDArray[np.uint8]:
        """``count`` bits as :meth:`SymbolEncoder.encode_bits` wrote them."""
        with _damage():
            found: NDArray[np.uint8] = self._coder.decode(_bits(ones), count).astype(np.uint8)
        return found

    def decode_below(self, count: int, limit: int) -> NDArray[np.int32]:
        """``count`` values as :meth:`SymbolEncoder.encode_below` wrote them."""
        with _damage():
            found: NDArray[np.int32] = self._coder.decode(_uniform(limit), count)
        return found

    def _decode(self, indices: Indices, tables: Tables) -> Symbols:
        order, groups = _group(indices, tables.skip)
        symbols = np.zeros(indices.size, np.int16)
        if not groups:
            return symbols
        decode, models = self._coder.decode, tables.models([table for table, _ in groups])
        ordered = np.concatenate([decode(model, count) for model, (_, count) in zip(models, groups, strict=True)])
        reach = tables.reach.take(indices.take(order))
        ordered -= reach
        escaped = np.flatnonzero(ordered > reach)
        if escaped.size:
            ordered[escaped] = self._decode_tail(reach[escaped].astype(np.intp) + 1)
        symbols[order] = ordered
        return symbols

    def _decode_tail(self, starts: NDArray[np.int_]) -> NDArray[np.int_]:
        bits = self._coder.decode(_prefixes, starts.size).astype(np.int32)
        values = np.ones(starts.size, np.int64)
        some = bits > 0
        if some.any():
            sizes = np.left_shift(1, bits[some]).astype(np.int32)
            values[some] = sizes + self._coder.decode(_uniform(), sizes)
        magnitude = starts + ((values - 1) >> 1)
        if int(magnitude.max()) > LIMIT:
            raise OSError("damaged LIC file: a symbol is out of range")
        return np.where((values - 1) & 1, -magnitude, magnitude)


@contextmanager
def _damage() -> Iterator[None]:
    """The range decoder's word for a stream that no encoder writes, in ours."""
    try:
        yield
    except AssertionError:
        raise OSError("damaged LIC file: the coded data fit no symbol") from None


def _bits(ones: int) -> Any:
    """A model of bits; weights that fill 2**24 but for one each stay the integers they are."""
    weights = np.array([TOTAL - ones - 1, ones - 1], np.float32)
    return constriction.stream.model.Categorical(weights, perfect=False)


def _group(indices: Indices, skip: int) -> tuple[NDArray[np.int_], list[tuple[int, int]]]:
    """Positions of the coded symbols, stably sorted by table, and each table's count."""
    order = np.argsort(indices, kind="stable")
    counts = np.bincount(indices)
    order = order[int(counts[:skip].sum()) :]
    groups = [(table, int(counts[table])) for table in np.flatnonzero(counts).tolist() if table >= skip]
    return order, groups

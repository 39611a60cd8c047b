"""The extended binary Golay code: 4096 words of 24 bits, any two of which differ in at least eight.

Built from the hexacode (Conway and Sloane, Sphere Packings, Lattices and Groups, chapter 11): 24 places are six columns
of four, labelled with the elements of GF(4).  In a word all columns have the same parity, which is that of the first
places of all columns, and the labels of each column's ones add up to a symbol; the six symbols are a word of the
hexacode.  So a column of given parity and symbol is one of two patterns that complement each other.

Word n = 2048 odd + 32 h + complements: the parity of the columns, the number of the hexacode's word, and which of the
first five columns (bits 0 to 4) are complemented; what the sixth one is follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS, ROWS = 6, 4


def _hexacode() -> NDArray[np.intp]:
    """Its 64 words (64, 6): a, b, c, and a x^2 + b x + c at x = 1, w, w^2, where n = 16 a + 4 b + c.

    Elements of GF(4) are 0, 1, w = 2 and w^2 = 3; they add up by exclusive or.
    """
    times = np.array([[0, 0, 0, 0], [0, 1, 2, 3], [0, 2, 3, 1], [0, 3, 1, 2]])
    a, b, c = np.array([(n >> 4, n >> 2 & 3, n & 3) for n in range(64)]).T
    values = [times[a, times[x, x]] ^ times[b, x] ^ c for x in (1, 2, 3)]
    return np.stack([a, b, c, *values], axis=1).astype(np.intp)


HEXACODE = _hexacode()

# Pattern n of a column has at row i the bit i of n.  The first eight are one of each pair of complements, n and 15 - n;
# even ones of symbols 0 to 3, then odd ones.
_PATTERN = np.array([0, 3, 5, 6, 1, 2, 4, 7])


def _words() -> NDArray[np.uint8]:
    number = np.arange(4096)
    odd = number >> 11
    pattern = _PATTERN[4 * odd[:, None] + HEXACODE[number >> 5 & 63]]
    complement = np.zeros((4096, COLUMNS), np.intp)
    complement[:, :5] = number[:, None] >> np.arange(5) & 1
    complement[:, 5] = np.bitwise_xor.reduce((pattern & 1) ^ complement, axis=1) ^ odd
    rows = (pattern ^ 15 * complement)[..., None] >> np.arange(ROWS) & 1
    words: NDArray[np.uint8] = rows.reshape(-1, COLUMNS * ROWS).astype(np.uint8)
    return words


WORDS = _words()

# Words of the hexacode as three pairs of symbols, (3, 64).
_PAIRS = np.ascontiguousarray((4 * HEXACODE[:, ::2] + HEXACODE[:, 1::2]).T)


UNIT = 4096
"""Of squared errors, in the 16 bits of :func:`cheapest`."""

LIMITS = 1024, 8192
"""Of what ones and other floors cost more, so that no sum leaves 16 bits."""

CHUNK = 512
"""Groups at a time: what is known of them all stays in the processor's cache."""


def nearest(x: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Numbers of the words (G, count) whose lattice points are nearest to groups (G, 24) in steps, or nearly so.

    The mean squared error of the first is 0.005 dB above that of the best of all words.
    """
    whole = np.rint(x)
    error = np.abs(x - whole)
    # Half a step is (1/2 - error)^2 - error^2 farther, squared, the second nearest floor (1 - error)^2 - error^2.
    half = (np.float32(0.25) - error) * UNIT
    further = np.stack([1 - 2 * error, 2 * error]) * UNIT
    odd = np.remainder(whole, 2).astype(np.uint8)
    return cheapest(half, further, np.stack([odd, odd ^ (x < whole)]), count)


def cheapest(
    half: NDArray[np.floating], further: NDArray[np.floating], odd: NDArray[np.uint8], count: int
) -> NDArray[np.intp]:
    """The ``count`` words whose lattice points cost groups least, or nearly so: numbers (G, count), in no order.

    half      what it costs more if a place has a one, (G, 24)
    further   what the second best floor costs more than the best, where places have zeros and ones, (2, G, 24)
    odd       whether the best floor is odd, the same

    Floors have an even sum.  Of each 32 words that differ in complements alone only the one is asked that would be the
    cheapest if sums could be odd.  Costs are rounded and cut at ``LIMITS``.
    """
    most, longest = LIMITS
    found = [np.zeros((0, count), np.intp)]
    for part in (slice(some, some + CHUNK) for some in range(0, len(half), CHUNK)):
        rows = np.clip(half[part].T, -most, most).astype(np.int16, "C")
        floors = [np.minimum(f[part].T, longest).astype(np.int16, "C") for f in further]
        found.append(_cheapest(rows, floors, [np.ascontiguousarray(o[part].T) for o in odd], count))
    return np.concatenate(found)


def _cheapest(
    half: NDArray[np.int16], further: Sequence[NDArray[np.int16]], odd: Sequence[NDArray[np.uint8]], count: int
) -> NDArray[np.intp]:
    plain, other = _by_pattern([np.zeros_like(half), half], np.add)
    complement, total = other < plain, _by_word(np.minimum(plain, other), np.add)
    # The last bit of what a complement saves tells whether it makes another sum of floors odd.
    moved = np.bitwise_xor.reduce((odd[0] ^ odd[1]).reshape(COLUMNS, 1, ROWS, -1), axis=2)
    saved = (np.abs(other - plain) & ~1) | moved
    weakest = _by_word(saved, np.minimum)
    plain, other = _by_pattern(further, np.minimum)
    least = _by_word(plain ^ ((plain ^ other) & -complement.astype(np.int16)), np.minimum)
    floors, _ = _by_pattern(odd, np.bitwise_xor)
    first = (np.arange(8, dtype=np.uint8)[:, None] & 1) ^ complement
    parities = _by_word(2 * (floors ^ (moved & complement)) + first, np.bitwise_xor)
    # Where first places have another parity than columns, the column that minds least is complemented.
    wrong = (parities & 1) ^ (np.arange(128) >= 64)[:, None]
    total += weakest * wrong
    # Where the sum is odd, the floor that minds least is the second best.
    total += least * ((parities >> 1) ^ (wrong & weakest & 1))
    found = total.argmin(axis=0)[:, None] if count == 1 else np.argpartition(total.T, count - 1, axis=1)[:, :count]
    return _numbers(found, complement, saved, np.take_along_axis(wrong.T, found, axis=1) != 0)


def _by_pattern(values: Sequence[NDArray[Any]], join: np.ufunc) -> tuple[NDArray[Any], NDArray[Any]]:
    """Values of places (24, G), the first ones where a pattern has a zero, else the second, joined over columns.

    Of the first eight patterns, and of their complements, (6, 8, G) each.
    """
    either = np.stack(values, axis=1).reshape(COLUMNS, ROWS, 2, -1)
    low, high = (join(either[:, n, None], either[:, n + 1, :, None]).reshape(COLUMNS, 4, -1) for n in (0, 2))
    found: NDArray[Any] = join(low[:, None], high[:, :, None]).reshape(COLUMNS, 16, -1)
    return found[:, :8], found[:, :7:-1]


def _by_word(values: NDArray[Any], join: np.ufunc) -> NDArray[Any]:
    """Values (6, 8, G) joined over the columns of the hexacode's words, even ones and odd ones (128, G)."""
    symbols = values.take(_PATTERN, axis=1).reshape(3, 2, 2, 4, -1)  # pair of columns, column, parity, symbol
    pairs = join(symbols[:, 0, :, :, None], symbols[:, 1, :, None]).reshape(3, 2, 16, -1)
    some = join(pairs[0].take(_PAIRS[0], axis=1), pairs[1].take(_PAIRS[1], axis=1))
    found: NDArray[Any] = join(some, pairs[2].take(_PAIRS[2], axis=1), out=some).reshape(128, -1)
    return found


def _numbers(
    words: NDArray[np.intp], complement: NDArray[np.bool_], saved: NDArray[np.int16], wrong: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """Numbers of words from those without complements (G, n); where ``wrong`` the weakest column has another one."""
    pattern = _PATTERN[4 * (words >> 6)[..., None] + HEXACODE[words & 63]]
    place = np.arange(COLUMNS), pattern, np.arange(len(words))[:, None, None]
    weakest = saved[place].argmin(axis=2)
    own = complement[place] ^ (wrong[..., None] & (weakest[..., None] == np.arange(COLUMNS)))
    found: NDArray[np.intp] = words * 32 + own[..., :5] @ (1 << np.arange(5))
    return found

"""What quantisers gain on Gaussian symbols: bits against rounding at equal squared error, by a real code.

    python examples/lattices.py

A real code is one that a decoder can follow: the bits of a coset (or a trellis state that both sides know), then each
component with the table of its coset, the last of a group with the half of that table that its parity leaves.
Tables are the symbols' own frequencies (there are enough symbols not to flatter them); reconstruction is at the
centroid of each table's entry.  Published estimates often sum the entropies of marginals, which no decoder can follow.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pillow_lic.quantizers import lattice

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SYMBOLS = 3 << 16


class Tally:
    """Bits and squared error of symbols, each coded with the table of its class."""

    def __init__(self) -> None:
        self.bits = self.error = 0.0

    def add(self, x: Floats, symbols: Ints, table: Ints) -> None:
        """Code symbols with tables of their own frequencies; rebuild them at their centroids."""
        entry = (table - table.min()) * 4096 + symbols + 2048
        _, place, count = np.unique(entry.ravel(), return_inverse=True, return_counts=True)
        total = np.bincount((table - table.min()).ravel())[np.ravel(table - table.min())]
        self.bits += float(np.log2(total / count[place]).sum())
        centroid = np.bincount(place, weights=x.ravel()) / count
        self.error += float(np.square(x.ravel() - centroid[place]).sum())


def scalar(x: Floats) -> Tally:
    """Rounding."""
    tally = Tally()
    tally.add(x, np.rint(x).astype(np.int64), np.zeros(x.shape, np.int64))
    return tally


def companded(strength: float) -> Callable[[Floats], Tally]:
    """Rounding after an A-law over four standard deviations, as LVQAC has it; the inverse is the centroid's."""

    def quantise(x: Floats) -> Tally:
        scale = 4 * x.std()
        size = strength * np.abs(x) / scale
        small = size < 1
        y = np.where(small, size, 1 + np.log(np.where(small, 1, size))) / (1 + np.log(strength))
        tally = Tally()
        tally.add(x, np.rint(np.sign(x) * y * scale).astype(np.int64), np.zeros(x.shape, np.int64))
        return tally

    return quantise


def nearest_even(x: Floats) -> tuple[Floats, Floats]:
    """The nearest whole numbers with an even sum to each row, and squared distances."""
    nearest = np.rint(x)
    error = x - nearest
    odd = np.flatnonzero(nearest.sum(axis=1) % 2)
    worst = np.abs(error[odd]).argmax(axis=1)
    nearest[odd, worst] += np.where(error[odd, worst] >= 0, 1, -1)
    return nearest, np.square(x - nearest).sum(axis=1)


def cosets(size: int, patterns: Floats, *, even: bool) -> Callable[[Floats], Tally]:
    """A lattice of groups: whole steps, with an even sum or not, moved by one of some patterns of half steps."""

    def quantise(x: Floats) -> Tally:
        rows = x.reshape(-1, size)
        best = np.full(len(rows), np.inf)
        symbols, coset = np.zeros(rows.shape), np.zeros(len(rows), np.int64)
        for number, pattern in enumerate(patterns):
            moved = rows - pattern
            points = nearest_even(moved) if even else (np.rint(moved), np.square(moved - np.rint(moved)).sum(axis=1))
            nearer = points[1] < best
            best[nearer], symbols[nearer], coset[nearer] = points[1][nearer], points[0][nearer], number
        words = float(np.log2(len(rows) / np.bincount(coset)[coset]).sum())
        return coded(rows, symbols.astype(np.int64), (2 * patterns[coset]).astype(np.int64), words, even=even)

    return quantise


def coded(rows: Floats, symbols: Ints, half: Ints, words: float, *, even: bool) -> Tally:
    """Groups, of which so many bits tell what lies half a step above, and where sums are even the last one's parity."""
    tally = Tally()
    tally.bits += words
    free = rows.shape[1] - 1 if even else rows.shape[1]
    tally.add(rows[:, :free], symbols[:, :free], half[:, :free])
    if even:
        tally.add(rows[:, -1], symbols[:, -1], half[:, -1] + 2 * (symbols[:, :-1].sum(axis=1) % 2))
    return tally


def half_of_leech(x: Floats) -> Tally:
    """H24, whose 4096 words are as likely as each other; its nearest points are those of the codec."""
    rows = x.reshape(-1, lattice.H24.side)
    symbols, coset = lattice.quantise(rows.astype(np.float32), lattice.H24)
    half = lattice.H24.words[coset].astype(np.int64)
    return coded(rows, symbols.astype(np.int64), half, 12.0 * len(rows), even=True)


def reed_muller() -> Floats:
    """The 32 words of RM(1, 4), as half steps: with an even sum of floors they make the Barnes-Wall lattice BW16."""
    rows = np.array([[1] * 16, *([(n >> b) & 1 for n in range(16)] for b in range(4))])
    return np.array([np.array(c) @ rows % 2 for c in product((0, 1), repeat=5)]) / 2


TRELLIS = {
    4: ((0, 2), (2, 0), (1, 3), (3, 1)),
    8: ((0, 1), (2, 3), (5, 4), (7, 6), (1, 0), (3, 2), (4, 5), (6, 7)),
}
"""Next states for even and odd symbols (4 states: VVC's dependent quantisation, 8 states: Ungerboeck's code)."""

MOVED = {4: (0, 0, 1, 1), 8: (0, 1) * 4}
"""States whose symbols lie half a step above."""


def trellis(states: int, length: int) -> Callable[[Floats], Tally]:
    """Trellis-coded quantisation of runs of so many symbols: half of the states lie on half steps, and the
    parities of the symbols lead from state to state; Viterbi's search, starting in state 0.
    """
    following = np.array(TRELLIS[states])
    moved = np.array(MOVED[states]) / 2

    def quantise(x: Floats) -> Tally:
        rows = x.reshape(-1, length)
        cost = np.full((len(rows), states), np.inf)
        cost[:, 0] = 0
        back, chosen = [], []
        for column in rows.T:
            new = np.full((len(rows), states), np.inf)
            origin, symbol = np.zeros((2, len(rows), states), np.int64)
            for state in range(states):
                for parity in (0, 1):
                    point = 2 * np.rint((column - moved[state] - parity) / 2) + parity
                    total = cost[:, state] + np.square(column - moved[state] - point)
                    to = following[state, parity]
                    better = total < new[:, to]
                    new[better, to], origin[better, to], symbol[better, to] = total[better], state, point[better]
            cost = new
            back.append(origin)
            chosen.append(symbol)
        state = cost.argmin(axis=1)
        every = np.arange(len(rows))
        symbols, table = np.zeros((2, *rows.shape), np.int64)
        for n in reversed(range(length)):
            symbols[:, n] = chosen[n][every, state]
            state = back[n][every, state]
            table[:, n] = 2 * moved[state]
        tally = Tally()
        tally.add(rows, symbols, table)
        return tally

    return quantise


def both(size: int) -> Floats:
    """No half steps, or half a step everywhere."""
    return np.array([np.zeros(size), np.full(size, 0.5)])


QUANTISERS: dict[str, Callable[[Floats], Tally]] = {
    "A-law, A = 1.5": companded(1.5),
    "A-law, A = 3": companded(3),
    "D4": cosets(4, np.zeros((1, 4)), even=True),
    "diamond, 4 latents": cosets(4, both(4), even=False),
    "diamond, 8 latents": cosets(8, both(8), even=False),
    "diamond, 32 latents": cosets(32, both(32), even=False),
    "diamond, 256 latents": cosets(256, both(256), even=False),
    "E8": cosets(8, both(8), even=True),
    "BW16": cosets(16, reed_muller(), even=True),
    "H24": half_of_leech,
    "trellis, 4 states, 64 latents": trellis(4, 64),
    "trellis, 8 states, 64 latents": trellis(8, 64),
}


def at_equal_error(x: Floats, quantise: Callable[[Floats], Tally], error: float) -> float:
    """Bits at a squared error, interpolated between six steps."""
    points = []
    for step in np.array([0.6, 0.8, 0.95, 1.1, 1.3, 1.6]):
        tally = quantise(x / step)
        points.append((np.log(tally.error * step**2), tally.bits))
    points.sort()
    errors, bits = zip(*points, strict=True)
    return float(np.interp(np.log(error), errors, bits))


def main() -> None:
    """Print a table: bits against rounding, in %, by standard deviation in steps of the rounding."""
    sigmas = (0.3, 0.5, 0.7, 1.0, 1.5, 3.0, 6.0)
    print(f"{'sigma':<32}" + "".join(f"{s:>8g}" for s in sigmas))
    normal = np.random.default_rng(1).normal(size=SYMBOLS)
    rounded = {s: scalar(normal * s) for s in sigmas}
    print(f"{'rounding, bits':<32}" + "".join(f"{rounded[s].bits / SYMBOLS:>8.3f}" for s in sigmas))
    for name, quantise in QUANTISERS.items():
        found = [at_equal_error(normal * s, quantise, rounded[s].error) / rounded[s].bits - 1 for s in sigmas]
        print(f"{name:<32}" + "".join(f"{100 * f:>+8.1f}" for f in found), flush=True)


if __name__ == "__main__":
    main()

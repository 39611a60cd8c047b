"""Levels of quality that make local quality even, from what a few levels do to each part of a picture.

After Johnston et al. (2018), whose codec spends bits until each block is as good as the others.  Here the
bits are given: the worst 8x8 blocks shall be as similar to the original as that many bits allow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pillow_lic.quantizers.adaptive import Levels

REACH = 8
"""Levels go from -8 to 8: steps between 2.2 times coarser and finer."""

WORST = 0.05
"""The share of blocks whose quality counts."""

REST = 0.1
"""What the similarity of all other blocks counts, against that of the worst ones."""

BLOCKS = 8
"""Blocks of 8x8 pixels on a side of a level's area."""

TINY = 1e-5
"""Of dissimilarities and bits: what has a logarithm."""

ROUNDS, HALVINGS = 8, 30


def even_levels(
    probes: tuple[int, ...], similarity: NDArray[np.float32], bits: NDArray[np.float64], shown: tuple[int, int]
) -> Levels:
    """The levels (rows, columns) for about as many bits as level 0 takes everywhere.

    ``similarity`` (probes, 8 rows, 8 columns) is the SSIM of each 8x8 pixels, ``bits`` (probes, rows, columns)
    what each level's area takes, if all have the level that a probe names; between, dissimilarity and bits are
    interpolated geometrically.  The first ``shown`` rows and columns of blocks are the picture's, others do not count.

    Minimises the sum of how far blocks fall below a threshold, and a little of all dissimilarity, plus mu times
    the bits, with mu such that the bits suffice and the threshold such that 5 % of blocks fall below it.
    """
    every = np.arange(-REACH, REACH + 1)
    quality, cost = 1 - _between(probes, every, 1 - similarity), _between(probes, every, bits)
    budget = cost[REACH].sum()
    rows, columns = bits.shape[1:]
    chosen = np.full((rows, columns), REACH)
    inside = np.s_[: shown[0], : shown[1]]
    threshold = np.quantile(quality[REACH][inside], WORST)
    seen = np.zeros(quality.shape[1:])
    seen[inside] = 1
    for _ in range(ROUNDS):
        lack = seen * (np.maximum(threshold - quality, 0) + REST * (1 - quality))
        lack = lack.reshape(every.size, rows, BLOCKS, columns, BLOCKS).sum(axis=(2, 4))
        chosen = _cheapest(lack, cost, budget)
        found = np.take_along_axis(quality, chosen.repeat(BLOCKS, 0).repeat(BLOCKS, 1)[None], 0)[0]
        threshold = (threshold + np.quantile(found[inside], WORST)) / 2
    levels: Levels = every[chosen].astype(np.int8)
    return levels


def _between(probes: tuple[int, ...], levels: NDArray[np.int_], seen: NDArray[np.floating]) -> NDArray[np.float64]:
    """What was seen at some levels (probes, ...), none below 0, for others."""
    logarithm = np.log(np.maximum(seen, TINY))
    place = np.interp(levels, probes, np.arange(len(probes)))
    low = np.minimum(place.astype(np.int64), len(probes) - 2)
    part = (place - low).reshape(-1, 1, 1)
    found: NDArray[np.float64] = np.exp(logarithm[low] * (1 - part) + logarithm[low + 1] * part)
    return found


def _cheapest(lack: NDArray[np.float64], cost: NDArray[np.float64], budget: float) -> NDArray[np.int64]:
    """The choice for each area (first axis of both) that lacks least for the budget, by Lagrange's multiplier."""
    low, high = -40.0, 10.0  # of the multiplier's logarithm
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        chosen = (lack + np.exp(middle) * cost).argmin(axis=0)
        if np.take_along_axis(cost, chosen[None], 0).sum() > budget:
            low = middle
        else:
            high = middle
    best: NDArray[np.int64] = (lack + np.exp(high) * cost).argmin(axis=0)
    return best

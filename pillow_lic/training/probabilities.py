"""Probability tables fitted to what symbols really do, as exact integers."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pillow_lic.entropy.ladder import phases
from pillow_lic.entropy.tables import TOTAL
from pillow_lic.models.hyperprior import SCALE_MIN, SCALE_STEP, SCALES

SPREAD = range(-10, 21, 2)
"""Neighbouring rungs of the scale ladder that a fitted table mixes, relative to its own."""


def gaussian_masses(sigma: float, reach: int) -> NDArray[np.float64]:
    """Probabilities of 0, 1, ... ``reach`` under a rounded Gaussian, then of both tails together."""
    edges = (np.arange(reach + 1) + 0.5) / (sigma * math.sqrt(2))
    beyond = np.array([math.erfc(e) for e in edges])  # two-sided: P(|x| > edge)
    return np.concatenate([[1 - beyond[0]], -np.diff(beyond) / 2, [beyond[-1]]])


def sigma_of(index: float) -> float:
    """Standard deviation of a rung of the scale ladder."""
    return SCALE_MIN * math.exp(index * SCALE_STEP)


def make_tables(counts: NDArray[np.int64] | None = None) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Frequencies and lengths of the 64 tables, as :class:`pillow_lic.entropy.tables.Tables` has them.

    Without ``counts`` they are Gaussian.  With the magnitudes that were seen with each table,
    (64, n) and the last column for larger ones, each is the mixture of Gaussians on neighbouring
    rungs that fits them best: predicted scales are never quite right, so what is seen has heavier
    tails.
    """
    frequencies, lengths = [], []
    for index in range(SCALES):
        reach = math.ceil(6 * sigma_of(index)) + 2
        seen = None if counts is None else counts[index]
        masses = _mixture(index, reach, seen)
        frequencies.append(mirrored_integers(masses))
        lengths.append(reach + 2)
    return np.concatenate(frequencies), np.array(lengths, np.int32)


def _mixture(index: int, reach: int, seen: NDArray[np.int64] | None) -> NDArray[np.float64]:
    own = gaussian_masses(sigma_of(index), reach)
    if seen is None or seen.sum() < 1000:
        return own
    parts = np.stack([gaussian_masses(sigma_of(index + d), reach) for d in SPREAD])
    parts = np.maximum(parts, 1e-300)
    data = np.concatenate([seen[: reach + 1], [seen[reach + 1 :].sum()]]).astype(np.float64)
    # The prior: a hundred symbols from the Gaussian itself.
    observed = data + 100 * np.concatenate([own[:1], 2 * own[1:-1], own[-1:]])
    return np.asarray(_fit(parts, observed) @ parts)


def _fit(parts: NDArray[np.float64], observed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of the mixture of ``parts`` (n, values) that makes ``observed`` (values,) likeliest, by EM."""
    weights = np.full(len(parts), 1 / len(parts))
    for _ in range(300):
        share = weights[:, None] * parts
        share /= share.sum(axis=0)
        weights = share @ observed / observed.sum()
    return weights


def mirrored_integers(masses: NDArray[np.float64]) -> NDArray[np.int32]:
    """Integers of at least 1 whose mirrored sum is exactly 2**24; zero takes what rounding leaves."""
    frequencies = np.maximum(1, np.floor(masses * TOTAL)).astype(np.int64)
    frequencies[0] = TOTAL - 2 * frequencies[1:-1].sum() - frequencies[-1]
    if frequencies[0] < 1:
        raise ValueError("a probability table is too wide for its precision")
    out: NDArray[np.int32] = frequencies.astype(np.int32)
    return out


def count_magnitudes(passes: Iterable[tuple[NDArray[np.int16], NDArray[np.uint8]]]) -> NDArray[np.int64]:
    """How often each magnitude (columns, the last for larger) was seen with each table (rows)."""
    columns = 512
    counts = np.zeros((SCALES, columns), np.int64)
    for symbols, indices in passes:
        magnitude = np.minimum(np.abs(symbols.astype(np.int64)), columns - 1)
        flat = indices.astype(np.int64) * columns + magnitude
        counts += np.bincount(flat, minlength=SCALES * columns).reshape(SCALES, columns)
    return counts


# -- context models: a table for each scale index and fraction of a step --------------------

COLUMNS = 1024
"""Values that are counted: -512...511, larger ones at the ends."""


def grains() -> NDArray[np.int32]:
    """To how many 64ths of a step a mean's shift is rounded, by scale index.

    Finer than a quarter of the scale or so; half as fine costs 0.1 %, and four times finer gains
    0.05 % with more than twice the tables.
    """
    sigma = np.array([sigma_of(i) for i in range(SCALES)])
    return np.select([sigma < 1, sigma < 2], [8, 16], 32).astype(np.int32)


def half_steps() -> NDArray[np.int32]:
    """Grains of a model without contexts: on a lattice its means shift by half a step or not at all."""
    return np.full(SCALES, 32, np.int32)


def shifted_masses(sigma: float, reach: int, shift: float) -> NDArray[np.float64]:
    """Probabilities of -reach ... reach under a Gaussian around ``shift``, rounded, then of all else."""
    distance = np.abs(np.arange(-reach, reach + 1) - shift)
    near, far = (np.array([math.erfc(e / (sigma * math.sqrt(2))) for e in distance + d]) / 2 for d in (-0.5, 0.5))
    masses = near - far
    return np.append(masses, max(0.0, 1 - masses.sum()))


def make_context_tables(
    counts: NDArray[np.int64] | None = None, grain: NDArray[np.int32] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Frequencies and lengths of a context model's tables, as :meth:`Tables.whole` takes them.

    ``counts`` (tables, ``COLUMNS``): how often each value was seen with each table.  All tables of a
    scale index share one mixture of Gaussians, shifted by their fractions.
    """
    tables: list[NDArray[np.int32]] = []
    for index, step in enumerate((grains() if grain is None else grain).tolist()):
        fractions = range(0, 33, step)
        reach = math.ceil(6 * sigma_of(index)) + 3
        own = _stack([sigma_of(index)], reach, fractions)
        seen = None if counts is None else counts[len(tables) : len(tables) + len(fractions)]
        if seen is not None and seen.sum() >= 1000:
            parts = np.maximum(_stack([sigma_of(index + d) for d in SPREAD], reach, fractions), 1e-300)
            middle = seen[:, COLUMNS // 2 - reach : COLUMNS // 2 + reach + 1]
            rest = seen.sum(axis=1, keepdims=True) - middle.sum(axis=1, keepdims=True)
            observed = np.concatenate([middle, rest], axis=1) + 100 / len(fractions) * own[0]
            weights = _fit(parts.reshape(len(parts), -1), observed.ravel())
            own = np.tensordot(weights, parts, axes=1)[None]
        tables += [whole_integers(masses) for masses in own[0]]
    return np.concatenate(tables), np.array([t.size for t in tables], np.int32)


def count_values(
    passes: Iterable[tuple[NDArray[np.int32], NDArray[np.uint16]]], grain: NDArray[np.int32] | None = None
) -> NDArray[np.int64]:
    """How often each value was seen with each of a context model's tables, (tables, ``COLUMNS``)."""
    count = int(phases(grains() if grain is None else grain).sum())
    counts = np.zeros(count * COLUMNS, np.int64)
    for values, tables in passes:
        column = np.clip(values + COLUMNS // 2, 0, COLUMNS - 1)
        counts += np.bincount(tables.astype(np.int64) * COLUMNS + column, minlength=counts.size)
    return counts.reshape(count, COLUMNS)


def _stack(sigmas: list[float], reach: int, fractions: range) -> NDArray[np.float64]:
    """(sigmas, fractions, 2 reach + 2) masses."""
    return np.stack([[shifted_masses(s, reach, f / 64) for f in fractions] for s in sigmas])


def whole_integers(masses: NDArray[np.float64]) -> NDArray[np.int32]:
    """Integers of at least 1 that sum to 2**24; the largest takes what rounding leaves."""
    frequencies = np.maximum(1, np.floor(masses * TOTAL)).astype(np.int64)
    frequencies[frequencies.argmax()] += TOTAL - frequencies.sum()
    if frequencies.min() < 1:
        raise ValueError("a probability table is too wide for its precision")
    out: NDArray[np.int32] = frequencies.astype(np.int32)
    return out

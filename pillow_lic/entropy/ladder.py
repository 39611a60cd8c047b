"""The ladder of scales, and all that whole numbers say of latents on it: with which table, around which mean.

On the host, by NumPy: what concerns one latent at a time is quick enough there, and integers are exact anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FRACTION = 5
"""Fraction bits of everything that enters a product of context models' networks."""

SHIFT_BITS = 8
"""Fraction bits of what a network answers: shifts in scales and in scale indices."""

STEP_BITS = 6
"""Fraction bits of a step: shifts of means are whole 64ths."""

HALF = 1 << STEP_BITS - 1
RATIO_LIMIT = 4 << FRACTION
RECIPROCAL_BITS = 8
"""Fraction bits of 1/scale beyond those of the ratio."""

GRAINS = {1, 2, 4, 8, 16, 32, 64}

Whole = NDArray[np.int32]


@dataclass(frozen=True)
class Ladder:
    """What context models need to know of each scale index, all integers.

    ``reciprocal``: ratio units (1/32) times 2**8 for each step, ``scale``: 64ths of a step,
    ``grain``: to how many 64ths of a step a shift is rounded (1, 2, 4 ... 64), (scales,) each.
    """

    reciprocal: Whole
    scale: Whole
    grain: Whole

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], scales: int) -> Ladder:
        """Take the ladder from a model's tensors; ``ValueError`` if it is impossible."""
        found = [tensors[f"ladder.{n}"] for n in ("reciprocal", "scale", "grain")]
        if any(t.shape != (scales,) or t.is_floating_point() for t in found):
            raise ValueError("the model's ladder of scales has the wrong shape")
        reciprocal, scale, grain = (t.numpy().astype(np.int64) for t in found)
        if (
            min(reciprocal.min(), scale.min()) < 1
            or reciprocal.max() >= 2**17
            or scale.max() > 2**13
            or not set(grain.tolist()) <= GRAINS
        ):
            raise ValueError("the model's ladder of scales is out of range")
        return cls(*(x.astype(np.int32) for x in (reciprocal, scale, grain)))

    @cached_property
    def first_table(self) -> Whole:
        """Where the tables of each scale index begin, and at the end how many there are."""
        return np.concatenate([[0], np.cumsum(phases(self.grain))]).astype(np.int32)

    @cached_property
    def _grain_bits(self) -> Whole:
        return np.frexp(self.grain)[1] - 1  # exact, as no logarithm has to be

    def refined(self, index: Whole, shift: Whole, change: Whole) -> tuple[Whole, Whole]:
        """Scale indices, and shifts of means in 64ths of a step that are multiples of their grains.

        From the ``index`` that latents have without a network, and its answers with 8 fraction bits: the ``shift`` in
        scales and the ``change`` of the index.
        """
        rounding = 1 << SHIFT_BITS >> 1
        offset = (shift * self.scale.take(index) + rounding) >> SHIFT_BITS
        scale = index + ((change + rounding) >> SHIFT_BITS)
        scale = np.minimum(np.maximum(scale, 0), self.scale.size - 1)
        grain = self.grain.take(scale)
        return scale, (offset + (grain >> 1)) & -grain

    def rows(self, scale: Whole, offset: Whole) -> tuple[Whole, Whole, Whole]:
        """Table, whole steps, and the fraction of a step (64ths, -32...31) for scale indices and shifts such as
        :meth:`refined` gives.
        """
        whole = (offset + HALF) >> STEP_BITS
        fraction = offset - (whole << STEP_BITS)
        return self.first_table.take(scale) + (np.abs(fraction) >> self._grain_bits.take(scale)), whole, fraction

    def ratios(self, symbols: Whole, index: Whole, half: Whole | None) -> Whole:
        """Symbols in units of their scales, 32nds, limited; ``half`` is 1 where latents lie half a step above them."""
        q, bits = np.minimum(np.maximum(symbols, -256), 256), RECIPROCAL_BITS
        if half is not None:
            q, bits = 2 * q + half, bits + 1
        r = (q * self.reciprocal.take(index) + (1 << bits >> 1)) >> bits
        found: Whole = np.minimum(np.maximum(r, -RATIO_LIMIT), RATIO_LIMIT)
        return found


def phases(grain: Whole) -> Whole:
    """How many fractions of a step, from 0 to 1/2, a grain leaves."""
    return (32 // grain + 1).astype(np.int32)

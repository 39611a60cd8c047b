"""The diamond lattice (LVQAC; Zhang and Wu, CVPR 2023) for all channels of a position.

Two codebooks, the integers and the integers plus one half, of which each position takes the nearer one for
all its latents with wide tables.  One bit tells which, coded with the probability that a tile's bits have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pillow_lic.entropy.coder import SymbolDecoder, SymbolEncoder
from pillow_lic.entropy.tables import TOTAL

LEVELS = 16
"""Of the probability of half steps."""


@dataclass(frozen=True)
class Diamond:
    """Which latents of a tile move with their position, ``wide`` (M, h, w), and which positions do.

    ``coset`` has a number for each position that has such latents, in raster order: 1 for half steps.
    """

    wide: NDArray[np.bool_]
    coset: NDArray[np.uint8]

    @cached_property
    def half(self) -> NDArray[np.bool_]:
        """Whether each latent lies half a step above its symbol, (M, h, w)."""
        moved = np.zeros(self.wide.shape[1:], np.bool_)
        moved[positions(self.wide)] = self.coset
        half: NDArray[np.bool_] = self.wide & moved
        return half

    @cached_property
    def group_of_last(self) -> NDArray[np.int32]:
        """No sum has to be even: -1 for all latents."""
        return np.full(self.wide.size, -1, np.int32)

    def coded_by(self, rank: NDArray[np.int32]) -> Diamond:
        """No latent waits for others."""
        return self

    def odd(self, symbols: NDArray[np.signedinteger], groups: NDArray[np.int32]) -> NDArray[np.bool_]:
        """There are no groups to tell of."""
        return np.zeros(groups.shape, np.bool_)

    def holding(self, coset: NDArray[np.unsignedinteger]) -> Diamond:
        """The same positions with other choices."""
        return replace(self, coset=coset.astype(np.uint8))

    def write(self, coder: SymbolEncoder, coset: NDArray[np.unsignedinteger]) -> None:
        """Append cosets: how likely half steps are in this tile, in ``LEVELS`` levels, and then the bits."""
        level = min(int(coset.mean() * LEVELS), LEVELS - 1) if coset.size else 0
        coder.encode_below(np.array([level]), LEVELS)
        coder.encode_bits(coset, (2 * level + 1) * TOTAL // (2 * LEVELS))

    def read(self, coder: SymbolDecoder, count: int) -> NDArray[np.uint8]:
        """Read so many cosets."""
        level = int(coder.decode_below(1, LEVELS)[0])
        return coder.decode_bits(count, (2 * level + 1) * TOTAL // (2 * LEVELS))

    def by_tile(self, tiles: int) -> NDArray[np.intp]:
        """How many positions of each tile have such latents."""
        found: NDArray[np.intp] = positions(self.wide).reshape(tiles, -1).sum(axis=1)
        return found

    def widest(self, index: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The largest index that moves at each of these positions."""
        found: NDArray[np.uint8] = np.where(self.wide, index, 0).max(axis=0)[positions(self.wide)]
        return found


def positions(wide: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where any latent of a position (h, w) moves."""
    found: NDArray[np.bool_] = np.logical_or.reduce(wide, axis=0)
    return found


def quantise(residual: NDArray[np.float32], wide: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """The nearer points of residuals (M, h, w) in steps: floors of the wide ones, in their order, and cosets."""
    error = np.abs(residual - np.rint(residual))
    # So far are half steps, squared, beyond whole ones: (1/2 - error)^2 - error^2.
    beyond = ((np.float32(0.25) - error) * wide).sum(axis=0)
    coset = beyond < 0
    floors = np.rint(residual - np.where(coset, np.float32(0.5), np.float32(0)))
    return floors[wide].astype(np.int32), coset[positions(wide)].astype(np.uint8)

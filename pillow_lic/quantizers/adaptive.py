"""Quality that varies over the picture: a level for each 64x64 pixels scales the quantiser's steps there.

Scales are rungs of the ladder of table indices, so that what h_s predicts stays right: a level of k
makes steps e^(k/10) times finer, means as many times larger, and moves every index by k.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pillow_lic.entropy.coder import SymbolDecoder, SymbolEncoder
from pillow_lic.entropy.tables import TOTAL, Tables
from pillow_lic.pixels import Pixels, Tile

Levels = NDArray[np.int8]

BLOCK = 4
"""Latent positions a side for each level."""

LIMIT = 16
FACTORS = (
    13226, 14617, 16155, 17855, 19733, 21809, 24103, 26639, 29441, 32538, 35961, 39744, 43926, 48547, 53654, 59298,
    65536, 72430, 80050, 88471, 97778, 108064, 119433, 131997, 145883, 161230, 178191, 196937, 217654, 240551, 265857,
    293825, 324735,
)  # fmt: skip
"""2**16 times the factor of each level, -16 ... 16; part of the format."""

FACTOR_BITS = 16


@dataclass(frozen=True)
class Priors:
    """What is known of y before it is read: means (64ths of a step) and table indices, (M, h, w) each, and
    h_s's last hidden layer (hyper_channels, h, w), all integers.  ``factor`` (h, w) or (M, h, w) tells how many
    times finer than nominal the steps are, ``fineness`` (h, w) how many times finer they are meant to be; None if
    nowhere.
    """

    mean: Tensor
    index: Tensor
    hidden: Tensor
    factor: Tensor | None = None
    fineness: Tensor | None = None

    @property
    def level(self) -> Tensor | int:
        """By how many indices the steps are meant to be finer, (h, w)."""
        return 0 if self.fineness is None else (10 * self.fineness.log()).round()

    def adapted(self, levels: Levels | None, scales: int) -> Priors:
        """The same for steps of other sizes; exact."""
        if levels is None:
            return self
        h, w = self.mean.shape[1:]
        spread = torch.from_numpy(levels.astype(np.int64)).to(self.mean.device)
        spread = spread.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[:h, :w]
        factor = torch.tensor(FACTORS, dtype=torch.int64, device=self.mean.device)[spread + LIMIT]
        mean = (self.mean.long() * factor + (1 << FACTOR_BITS - 1)) >> FACTOR_BITS
        index = (self.index.long() + spread).clamp(0, scales - 1)
        finer = factor.to(torch.float32) / 2**FACTOR_BITS
        return replace(self, mean=mean.int(), index=index.to(torch.uint8), factor=finer, fineness=finer)

    def stretched(self, members: NDArray[np.int64], level: int, scales: int) -> Priors:
        """The same where some latents (flat indices) have the steps of a level; exact."""
        if not level:
            return self
        shape, device, at = self.mean.shape, self.mean.device, members.ravel()
        mean, index = self.mean.cpu().numpy().copy(), self.index.cpu().numpy().copy()
        wider = mean.take(at).astype(np.int64) * FACTORS[level + LIMIT]
        mean.put(at, (wider + (1 << FACTOR_BITS - 1)) >> FACTOR_BITS)
        index.put(at, np.clip(index.take(at).astype(np.int16) + level, 0, scales - 1))
        factor = np.ones(shape, np.float32)
        factor.put(at, np.float32(FACTORS[level + LIMIT] / 2**FACTOR_BITS))
        moved = [torch.from_numpy(x).to(device) for x in (mean, index, factor)]
        if self.factor is not None:
            moved[2] *= self.factor
        return replace(self, mean=moved[0], index=moved[1], factor=moved[2])


def levels_of(mask: Pixels, height: int, width: int) -> Levels:
    """Levels (height / 4, width / 4, rounded up) for latents (height, width) from a mask of their pixels.

    The mean of a block's brightness decides: 0 is level -8, 255 level 8, 2.2 times as coarse and as fine.
    """
    side = 16 * BLOCK
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    padded = np.pad(mask, ((0, rows * side - mask.shape[0]), (0, columns * side - mask.shape[1])), mode="edge")
    means = padded.reshape(rows, side, columns, side).mean(axis=(1, 3))
    found: Levels = np.rint(means * (16 / 255) - 8).astype(np.int8)
    return found


def together(one: Levels, other: Levels | None) -> Levels:
    """Both at once, as far as levels go."""
    if other is None:
        return one
    both: Levels = np.clip(one + other, -LIMIT, LIMIT)
    return both


def of_tile(levels: Levels, tile: Tile) -> Levels:
    """A tile's part of a picture's levels."""
    rows = slice(tile.top // BLOCK, -(-tile.bottom // BLOCK))
    return levels[rows, tile.left // BLOCK : -(-tile.right // BLOCK)]


def encode(coder: SymbolEncoder, levels: Levels) -> None:
    """Append levels: differences to the left, in the first column to the one above."""
    whole = levels.astype(np.int32)
    deltas = np.diff(whole, axis=1, prepend=0)
    deltas[:, 0] = np.diff(whole[:, 0], prepend=0)
    coder.encode(deltas.ravel(), np.zeros(deltas.size, np.uint8), _tables())


def decode(coder: SymbolDecoder, rows: int, columns: int) -> Levels:
    """Read levels; ``OSError`` if one is out of range."""
    deltas = coder.decode(np.zeros(rows * columns, np.uint8), _tables()).astype(np.int64).reshape(rows, columns)
    deltas[:, 0] = deltas[:, 0].cumsum()
    levels = deltas.cumsum(axis=1)
    if levels.size and int(np.abs(levels).max()) > LIMIT:
        raise OSError("damaged LIC file: a level of quality is out of range")
    found: Levels = levels.astype(np.int8)
    return found


@cache
def _tables() -> Tables:
    """One table of differences -32 ... 32: +-d has frequency 2**(21 - min(d, 13)), the escape 1, 0 the rest."""
    side = [2 ** (21 - min(d, 13)) for d in range(1, 2 * LIMIT + 1)]
    table = np.array([*reversed(side), TOTAL - 2 * sum(side) - 1, *side, 1], np.int64)
    return Tables([table])

"""Lattices for groups of latents: Gosset's E8, the Barnes-Wall lattice in sixteen dimensions and half of Leech's.

All are whole numbers with an even sum, moved by half a step wherever a word of a code has a one: E8 has two words
(all zeros and all ones), BW16 the 32 words of the Reed-Muller code RM(1, 4), H24 the 4096 of the extended Golay code;
Leech's lattice has as many points again in between, which bring little (Conway and Sloane, Sphere Packings, Lattices
and Groups, chapters 4 and 5; Forney 1988, Coset Codes II).  E8 has as many points to a volume as whole numbers have,
and squared errors 14 % smaller (0.65 dB).  BW16 has sixteen times as many for sixteen latents, H24 2048 times as many
for 24, and their steps are 1.22 and 1.35 times as wide instead: errors as small as E8's at a lower rate (0.86 and
0.98 dB in all).

A group's word is a few bits; its symbols are coded as ever, moved by half a step where the word says so, and the
last one knows whether it is even.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pillow_lic.entropy.coder import SymbolDecoder, SymbolEncoder
from pillow_lic.quantizers import golay


@dataclass(frozen=True, eq=False)
class Kind:
    """A lattice: its words (n, side) of zeros and ones, n a power of two, and the level of quality (see
    :mod:`pillow_lic.quantizers.adaptive`) whose steps its latents have.

    They have scale indices from the model's ``lattice`` and ``beyond`` on.  Groups are made at each position, or
    ``across`` positions, so that none of a position's latents are left over.
    """

    words: NDArray[np.uint8]
    level: int = 0
    beyond: int = 0
    across: bool = False

    @property
    def side(self) -> int:
        """Latents of a group."""
        return int(self.words.shape[1])

    def cosets(self, groups: int) -> NDArray[Any]:
        """Numbers of words for so many groups, all 0."""
        return np.zeros(groups, np.uint8 if len(self.words) <= 256 else np.uint16)


def _reed_muller() -> NDArray[np.uint8]:
    """RM(1, 4): word n has at place p the parity of the bits of n & p & 15, the other one if n is 16 or more."""
    rows = np.array([*([(p >> bit) & 1 for p in range(16)] for bit in range(4)), [1] * 16])
    bits = np.array([word[::-1] for word in product((0, 1), repeat=5)])
    words: NDArray[np.uint8] = (bits @ rows % 2).astype(np.uint8)
    return words


E8 = Kind(np.array([[0] * 8, [1] * 8], np.uint8))
BW16 = Kind(_reed_muller(), level=-2)
H24 = Kind(golay.WORDS, level=-3, beyond=1, across=True)
KINDS = {"e8": E8, "bw16": BW16, "h24": H24}


@dataclass(frozen=True)
class Lattice:
    """The groups of a tile's latents (M, h, w), and which word moves each.

    ``members`` (G, side) are flat indices, ``coset`` (G,) numbers of words.  The symbol of a latent is the floor
    of its steps: those of a group have an even sum.  Members are coded by ``rank``, (M, h, w) or (M, 1, 1), if there is
    one, and then by channel.
    """

    kind: Kind
    members: NDArray[np.int64]
    coset: NDArray[np.unsignedinteger]
    shape: tuple[int, ...]
    rank: NDArray[np.int32] | None = None

    @cached_property
    def last(self) -> NDArray[np.intp]:
        """The place of the member that is coded after all others, (G,)."""
        if self.rank is None:
            return np.full(len(self.members), self.kind.side - 1)
        rank = np.broadcast_to(self.rank, self.shape).ravel().take(self.members)
        found: NDArray[np.intp] = self.kind.side - 1 - rank[:, ::-1].argmax(axis=1)
        return found

    def coded_by(self, rank: NDArray[np.int32]) -> Lattice:
        """The same groups, coded first by the old rank and then by another one, from 0 on."""
        return replace(self, rank=rank if self.rank is None else self.rank * (rank.max(initial=0) + 1) + rank)

    @cached_property
    def half(self) -> NDArray[np.bool_]:
        """Whether each latent lies half a step above its symbol, (M, h, w)."""
        half = np.zeros(self.shape, np.bool_)
        half.reshape(-1)[self.members] = self.kind.words[self.coset]
        return half

    @cached_property
    def group_of_last(self) -> NDArray[np.int32]:
        """The group of which a latent is the last member, by flat index; -1 where it is none's."""
        groups = np.full(math.prod(self.shape), -1, np.int32)
        every = np.arange(len(self.members), dtype=np.int32)
        groups[self.members[every, self.last]] = every
        return groups

    def odd(self, symbols: NDArray[np.signedinteger], groups: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether the sums of some groups' symbols (flat) are odd."""
        members = symbols.take(self.members.take(groups, axis=0))
        odd: NDArray[np.bool_] = np.bitwise_xor.reduce(members, axis=1) % 2 == 1
        return odd

    def holding(self, coset: NDArray[np.unsignedinteger]) -> Lattice:
        """The same groups with other words."""
        return replace(self, coset=coset)

    def write(self, coder: SymbolEncoder, coset: NDArray[np.unsignedinteger]) -> None:
        """Append numbers of words, all as likely."""
        coder.encode_below(coset, len(self.kind.words))

    def read(self, coder: SymbolDecoder, count: int) -> NDArray[np.integer]:
        """Read so many numbers of words."""
        return coder.decode_below(count, len(self.kind.words))

    def by_tile(self, tiles: int) -> NDArray[np.intp]:
        """How many groups each tile has."""
        area = self.shape[1] * self.shape[2]
        return np.bincount(self.members[:, 0] % area // (area // tiles), minlength=tiles)

    def widest(self, index: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The largest index of each group's members."""
        found: NDArray[np.uint8] = index.ravel()[self.members].max(axis=1, initial=0)
        return found


def members_of(index: NDArray[np.uint8], first: int, kind: Kind, tiles: int = 1) -> NDArray[np.int64]:
    """Groups (G, side), flat indices in latents (M, h, w), of tiles one below the other, with these table indices.

    Latents whose table is ``first`` or a later one form groups in order of position, then channel: those of each
    position by themselves, or all of a tile's.  What is less than a group at the end is left over.
    """
    channels, positions = index.shape[0], index.shape[1] * index.shape[2]
    wide = index.reshape(channels, positions) >= first + kind.beyond
    by_position = np.empty((positions, channels), np.bool_)
    for some in range(0, channels, 32):  # in one piece it takes twice as long
        by_position[:, some : some + 32] = wide[some : some + 32].T
    count = np.add.reduce(wide.view(np.uint8), axis=0, dtype=np.uint16).astype(np.intp)
    found, place = np.flatnonzero(by_position), np.arange(positions).repeat(count)
    if kind.across:
        count = count.reshape(tiles, -1).sum(axis=1)
    over = count % kind.side
    left = (count.cumsum() - over.cumsum()).repeat(over) + np.arange(over.sum())
    members: NDArray[np.int64] = (found - place * channels) * positions + place
    return np.delete(members, left).reshape(-1, kind.side)


def quantise(x: NDArray[np.float32], kind: Kind) -> tuple[NDArray[np.int32], NDArray[np.unsignedinteger]]:
    """The nearest lattice points of groups (G, side) in steps: floors (G, side), numbers of words (G,)."""
    coset = kind.cosets(len(x))
    coset[:] = nearest_words(x, kind, 1)[:, 0]
    return nearest_even(x - kind.words[coset] * np.float32(0.5)).astype(np.int32), coset


def nearest_words(x: NDArray[np.float32], kind: Kind, count: int) -> NDArray[np.intp]:
    """Numbers of the words, (G, count) in no order, with the points nearest to groups (G, side), or nearly those."""
    if kind is H24:
        return golay.nearest(x, count)
    far = distances(x, kind)
    found: NDArray[np.intp] = (
        far.argmin(axis=1)[:, None] if count == 1 else np.argpartition(far, count - 1, axis=1)[:, :count]
    )
    return found


def distances(x: NDArray[np.float32], kind: Kind) -> NDArray[np.float32]:
    """Squared distances of groups (G, side) of E8 or BW16 to the nearest point of each word, (G, words)."""
    nearest = [np.rint(x - np.float32(half)) for half in (0, 0.5)]
    error = [np.abs(x - np.float32(half) - n) for half, n in zip((0, 0.5), nearest, strict=True)]
    found = _joined([np.square(e) for e in error], kind, np.add)
    # Where the sum is odd, the worst one is rounded the other way.
    worst = _joined(error, kind, np.maximum)
    odd = _joined([n.astype(np.int32).astype(np.uint8) & 1 for n in nearest], kind, np.bitwise_xor)
    found += odd * (1 - 2 * worst)
    return found.T


def _joined(values: Sequence[NDArray[Any]], kind: Kind, join: np.ufunc) -> NDArray[Any]:
    """Members' values (G, side) joined by word, (words, G): the first where it has a zero, else the second.

    The Reed-Muller code's words are made of pairs, these of pairs of pairs: what words share is joined once.
    """
    # A row for each member: joining long rows takes a fraction of the time of joining many short ones.
    plain, other = (np.ascontiguousarray(v.T) for v in values)
    if len(kind.words) == 2:
        return np.stack([join.reduce(plain), join.reduce(other)])
    plain, other = plain[:, None], other[:, None]
    while len(plain) > 1:
        (p, q), (o, r) = (plain[::2], plain[1::2]), (other[::2], other[1::2])
        plain = np.concatenate([join(p, q), join(p, r)], axis=1)
        other = np.concatenate([join(o, r), join(o, q)], axis=1)
    return np.concatenate([plain[0], other[0]])


def nearest_even(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest whole numbers with an even sum (G, side): if it is odd, the worst one is rounded the other way."""
    nearest = np.rint(x)
    odd = np.flatnonzero(nearest.sum(axis=1) % 2)
    error = x[odd] - nearest[odd]
    worst = np.abs(error).argmax(axis=1)
    rows = np.arange(odd.size)
    nearest[odd, worst] += np.where(error[rows, worst] >= 0, 1, -1).astype(np.float32)
    return nearest

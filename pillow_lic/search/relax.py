"""Quantisers as an encoder's search sees them: what points cost, and choices that can be differentiated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pillow_lic.quantizers import golay
from pillow_lic.quantizers.lattice import H24, Kind, nearest_words
from pillow_lic.search.costs import Costs


class Relaxation(Protocol):
    """A quantiser of values (n,) in steps.

    Called, it is a random choice that can be differentiated (Yang, Bamler, Mandt 2020): what stands for the
    chosen points, (n,), and the bits that the choice is expected to cost.  ``temperature`` says how soft the
    choice is and ``noise`` how random: 1 is the published method, 0 a soft quantiser.
    """

    def __call__(  # noqa: D102
        self, values: Tensor, temperature: float, noise: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]: ...

    def bits(self, points: Tensor) -> Tensor:
        """What points (n,) cost together."""

    def best(self, target: Tensor, curves: Tensor) -> Tensor:
        """Points (n,) near a target that make ``curves`` (n,) times the squared distance, plus bits, small."""


@dataclass(frozen=True)
class Rounding:
    """Each value goes down or up."""

    costs: Costs

    def __call__(
        self, values: Tensor, temperature: float, noise: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Points and bits; see above."""
        points, bits = self.each(values, temperature, noise, generator)
        return points, bits.sum()

    def each(
        self, values: Tensor, temperature: float, noise: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Points and the bits of each, (n,) both."""
        low, share = softly_rounded(values, temperature, noise, generator)
        below = self.costs.of(low)
        return low + share, below + share * (self.costs.of(low + 1) - below)

    def bits(self, points: Tensor) -> Tensor:
        """See :class:`Relaxation`."""
        return self.costs.of(points).sum()

    def best(self, target: Tensor, curves: Tensor) -> Tensor:
        """See :class:`Relaxation`."""
        return self.decided(target, curves)[0]

    def decided(self, target: Tensor, curves: Tensor) -> tuple[Tensor, Tensor]:
        """The better of the points below and above, and what each costs, distance and bits, (n,) both."""
        low = target.floor()
        below, above = (curves * (p - target).square() + self.costs.of(p) for p in (low, low + 1))
        return torch.where(above < below, low + 1, low), torch.minimum(below, above)


@dataclass(frozen=True)
class DiamondChoice:
    """Each position moves its wide values by half a step or does not; then each value goes down or up.

    ``position`` (n,) numbers the values' positions, ``wide`` (n,) tells which may move.
    """

    costs: Costs
    position: Tensor
    wide: Tensor

    def __call__(
        self, values: Tensor, temperature: float, noise: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Points and bits; see above."""
        (whole, few), (half, many) = (
            Rounding(self.costs.part((n,))).each(values - n / 2, temperature, noise, generator) for n in (0, 1)
        )
        half = half + 0.5
        error = (values - values.detach().round()).abs()
        # Half steps, squared, lie so far beyond whole ones: (1/2 - error)^2 - error^2.
        nearer = values.new_zeros(int(self.position.max()) + 1)
        nearer = nearer.index_add(0, self.position, (error - 0.25) * self.wide)
        chance = _chances(nearer, generator)
        share = torch.sigmoid((nearer * (4 / 3 / temperature) + noise * torch.logit(chance)) / temperature)
        share = share[self.position] * self.wide
        return whole + share * (half - whole), (few + share * (many - few)).sum()

    def bits(self, points: Tensor) -> Tensor:
        """See :class:`Relaxation`; the choices of codebooks are left out."""
        moved = (points != points.floor()).long()
        return self.costs.part((moved, torch.arange(len(points), device=points.device))).of(points.floor()).sum()

    def best(self, target: Tensor, curves: Tensor) -> Tensor:
        """See :class:`Relaxation`."""
        (whole, one), (half, other) = (Rounding(self.costs.part((n,))).decided(target - n / 2, curves) for n in (0, 1))
        saved = target.new_zeros(int(self.position.max()) + 1)
        saved = saved.index_add(0, self.position, (one - other) * self.wide)
        return torch.where((saved > 0)[self.position] & self.wide, half + 0.5, whole)


@dataclass(frozen=True)
class LatticeChoice:
    """Each group goes to one of some of the nearest points of a lattice, the rest up or down.

    ``members`` (G, side) and ``rest`` (n - G side,) are places among the values; ``last`` (G,) tells which member of a
    group is coded after all others.
    """

    kind: Kind
    costs: Costs
    members: Tensor
    rest: Tensor
    last: Tensor

    def __call__(
        self, values: Tensor, temperature: float, noise: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Points and bits; see above."""
        others, bits = Rounding(self.costs.part((0, self.rest)))(values[self.rest], temperature, noise, generator)
        x = values[self.members]
        floors, moved = candidates(x.detach(), self.kind)
        points = floors + moved.to(x.dtype) / 2
        # Between two neighbours of a line this has the slope of the scalar choice at one half.
        favour = (points - x).square().sum(dim=2) * (-4 / 3 / temperature)
        chance = _chances(favour, generator)
        share = torch.softmax((favour - noise * torch.log(-torch.log(chance))) / temperature, dim=0)
        chosen = (share[:, :, None] * points).sum(dim=0)
        result = torch.zeros_like(values).index_put((self.rest,), others).index_put((self.members,), chosen)
        return result, bits + (share * self._bits(floors, moved)).sum()

    def bits(self, points: Tensor) -> Tensor:
        """See :class:`Relaxation`."""
        x = points[self.members][None]
        alone = self.costs.part((0, self.rest)).of(points[self.rest]).sum()
        return alone + self._bits(x.floor(), (x != x.floor()).long()).sum()

    def best(self, target: Tensor, curves: Tensor) -> Tensor:
        """See :class:`Relaxation`; of each word the point that is best but for what the last symbol's parity saves."""
        x, weight = target[self.members], curves[self.members]
        # Of each latent as it is and half a step above its symbol, (2, G, side): the better floor, and what it costs.
        half = torch.tensor([0, 1], device=x.device)[:, None, None].expand(2, *x.shape)
        costs = self.costs.part((half, self.members.expand(half.shape)))
        aim = x - half.to(x.dtype) / 2
        low = aim.floor()
        below, above = (weight * (f - aim).square() + costs.of(f) for f in (low, low + 1))
        least, further, up = torch.minimum(below, above), (above - below).abs(), above < below
        floors = low + up
        moved = _words(self.kind, least, further, floors)
        cost, lose = least.gather(0, moved).sum(dim=2), further.gather(0, moved).min(dim=2)
        odd = floors.gather(0, moved).sum(dim=2).remainder(2) == 1
        chosen = (cost + lose.values * odd).argmin(dim=0)
        group = torch.arange(len(x), device=x.device)
        moved, odd, place = moved[chosen, group], odd[chosen, group], lose.indices[chosen, group]
        found = floors.gather(0, moved[None])[0]
        found[group, place] += odd * (1.0 - 2.0 * up.gather(0, moved[None])[0][group, place])
        points = (found + moved.to(x.dtype) / 2).to(x.dtype)
        alone = Rounding(self.costs.part((0, self.rest))).best(target[self.rest], curves[self.rest])
        return torch.zeros_like(target).index_put((self.rest,), alone).index_put((self.members,), points)

    def _bits(self, floors: Tensor, moved: Tensor) -> Tensor:
        """Bits of candidates (n, G, side), each half a step above its symbol or not: (n, G)."""
        costs = self.costs.part((moved, self.members.expand(moved.shape)))
        last = (slice(None), torch.arange(len(self.last), device=floors.device), self.last)
        free = costs.of(floors)
        return free.sum(dim=2) - free[last] + costs.part(last).of_parity(floors[last]) + math.log2(len(self.kind.words))


def softly_rounded(
    values: Tensor, temperature: float, noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The whole numbers below values, and how far a random choice goes from there to those above; see
    :class:`Relaxation`.
    """
    low = values.detach().floor()
    fraction = (values - low).clamp(1e-4, 1 - 1e-4)
    favour = (torch.atanh(fraction) - torch.atanh(1 - fraction)) / temperature
    chance = _chances(fraction, generator)
    return low, torch.sigmoid((favour + noise * torch.logit(chance)) / temperature)


def _chances(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers between 0 and 1, of a tensor's shape, whose logarithms are finite."""
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device).clamp_(1e-6, 1 - 1e-6)


CANDIDATES = 8
"""Words of a lattice, the nearest of many, that a group chooses from.

Four gain 0.4 % less in a tenth less time, sixteen 0.1 % more in a fifth more.
"""


BIT = 200.0
"""In the units of :mod:`pillow_lic.quantizers.golay`."""


def _words(kind: Kind, least: Tensor, further: Tensor, floors: Tensor) -> Tensor:
    """Words (n, G, side) that may be a group's best: all, or of many some of the best.

    Where a word has zeros and ones, (2, G, side), ``least`` is what the best of ``floors`` costs in bits, ``further``
    what the second best one costs more.
    """
    words = torch.from_numpy(kind.words).to(least.device, torch.long)
    if kind is not H24:
        return words[:, None].expand(-1, *least.shape[1:])
    half, more = (BIT * (least[1] - least[0])).cpu().numpy(), (BIT * further).cpu().numpy()
    near = golay.cheapest(half, more, floors.remainder(2).to(torch.uint8).cpu().numpy(), CANDIDATES)
    return words[torch.from_numpy(near).to(least.device).T]


def candidates(x: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Points near groups (G, side) of a lattice: floors, and which latents lie half a step above, (n, G, side) each.

    Of a lattice with few words the nearest two of each, else the nearest of each of the nearest words.
    """
    words = torch.from_numpy(kind.words).to(x.device, torch.long)
    if len(words) < CANDIDATES:
        moved = words.repeat_interleave(2, 0)[:, None].expand(-1, *x.shape)
        return torch.stack([f for word in words for f in nearest_two(x - word.to(x.dtype) / 2)]), moved
    near = torch.from_numpy(nearest_words(x.cpu().numpy(), kind, CANDIDATES))
    moved = words[near.to(x.device).T]
    return torch.stack([nearest_two(x - word.to(x.dtype) / 2)[0] for word in moved]), moved


def nearest_two(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest whole numbers with an even sum to each row of x (G, side), and the next nearest but for ties."""
    nearest = x.round()
    error = x - nearest
    odd = nearest.sum(dim=1).remainder(2) == 1
    worst = error.abs().topk(2, dim=1).indices
    move = torch.where(error.gather(1, worst) >= 0, 1.0, -1.0).to(x.dtype)
    one = nearest.scatter_add(1, worst[:, :1], move[:, :1])
    other = torch.where(odd[:, None], nearest, one).scatter_add(1, worst[:, 1:], move[:, 1:])
    return torch.where(odd[:, None], one, nearest), other

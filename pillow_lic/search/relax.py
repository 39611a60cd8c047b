"""Quantisers as random choices that can be differentiated (Yang, Bamler, Mandt 2020).

Each goes from values (n,) in steps to what stands for the chosen points, (n,), and to the bits that the
choice is expected to cost.  ``temperature`` says how soft the choice is and ``noise`` how random: 1 is
the published method, 0 a soft quantiser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pillow_lic.search.costs import Costs

Relaxation = Callable[[Tensor, float, float, torch.Generator], tuple[Tensor, Tensor]]


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
        low = values.detach().floor()
        fraction = (values - low).clamp(1e-4, 1 - 1e-4)
        favour = (torch.atanh(fraction) - torch.atanh(1 - fraction)) / temperature
        chance = torch.rand(fraction.shape, generator=generator, device=values.device).clamp_(1e-6, 1 - 1e-6)
        share = torch.sigmoid((favour + noise * torch.logit(chance)) / temperature)
        below = self.costs.of(low)
        return low + share, below + share * (self.costs.of(low + 1) - below)


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
        nearer = torch.zeros(int(self.position.max()) + 1, device=values.device)
        nearer = nearer.index_add(0, self.position, (error - 0.25) * self.wide)
        chance = torch.rand(nearer.shape, generator=generator, device=values.device).clamp_(1e-6, 1 - 1e-6)
        share = torch.sigmoid((nearer * (4 / 3 / temperature) + noise * torch.logit(chance)) / temperature)
        share = share[self.position] * self.wide
        return whole + share * (half - whole), (few + share * (many - few)).sum()


@dataclass(frozen=True)
class LatticeChoice:
    """Each group of eight goes to one of the two nearest points of either coset of E8, the rest up or down.

    ``members`` (G, 8) and ``rest`` (n - 8 G,) are places among the values.
    """

    costs: Costs
    members: Tensor
    rest: Tensor

    def __call__(
        self, values: Tensor, temperature: float, noise: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Points and bits; see above."""
        others, bits = Rounding(self.costs.part((0, self.rest)))(values[self.rest], temperature, noise, generator)
        x = values[self.members]
        floors = torch.stack([f for half in (0.0, 0.5) for f in nearest_two(x.detach() - half)])
        points = floors + torch.tensor([0.0, 0.0, 0.5, 0.5], device=x.device)[:, None, None]
        # Between two neighbours of a line this has the slope of the scalar choice at one half.
        favour = (points - x).square().sum(dim=2) * (-4 / 3 / temperature)
        chance = torch.rand(favour.shape, generator=generator, device=x.device).clamp_(1e-6, 1 - 1e-6)
        share = torch.softmax((favour - noise * torch.log(-torch.log(chance))) / temperature, dim=0)
        chosen = (share[:, :, None] * points).sum(dim=0)
        result = torch.zeros_like(values).index_put((self.rest,), others).index_put((self.members,), chosen)
        return result, bits + (share * self._bits(floors)).sum()

    def _bits(self, floors: Tensor) -> Tensor:
        """Bits of candidates (4, G, 8), the first two without and the others with half a step: (4, G)."""
        parts = []
        for half in (0, 1):
            free = self.costs.part((half, self.members[:, :-1])).of(floors[2 * half : 2 * half + 2, :, :-1])
            last = self.costs.part((half, self.members[:, -1])).of_parity(floors[2 * half : 2 * half + 2, :, -1])
            parts.append(free.sum(dim=2) + last)
        return torch.cat(parts) + 1


def nearest_two(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest whole numbers with an even sum to each row of x (G, 8), and the next nearest but for ties."""
    nearest = x.round()
    error = x - nearest
    odd = nearest.sum(dim=1).remainder(2) == 1
    worst = error.abs().topk(2, dim=1).indices
    move = torch.where(error.gather(1, worst) >= 0, 1.0, -1.0)
    one = nearest.scatter_add(1, worst[:, :1], move[:, :1])
    other = torch.where(odd[:, None], nearest, one).scatter_add(1, worst[:, 1:], move[:, 1:])
    return torch.where(odd[:, None], one, nearest), other

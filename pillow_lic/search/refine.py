"""Latents refined by gradient descent against the decoder that will read them.

Stochastic Gumbel annealing (Yang, Bamler, Mandt 2020): each latent is rounded down or up at random,
the likelier the nearer, through a relaxation that hardens as the search goes on.  The networks stay as
they are, and so does every decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pillow_lic.search.costs import Costs

STEPS = (0, 4, 8, 24, 48, 100, 200, 400, 800, 1600)
"""Steps of each effort."""

RATE = 0.03
"""Adam's learning rate in steps, held for the first half and lowered to nothing over the second."""

REFRESH = 32
"""Steps between looks at what a context model makes of the symbols as they are by then."""

SEED = 0


def refine(
    start: Tensor,
    distortion: Callable[[Tensor], Tensor],
    costs_of: Callable[[Tensor], Costs],
    steps: int,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Symbols (n,) for latents that lie ``start`` (n,) steps from their means.

    ``distortion`` gives what values (n,) cost in bits, with gradients; ``costs_of`` what coding costs
    around given symbols.  Deterministic on one machine.
    """
    values = start.detach().clone().requires_grad_(True)
    adam = torch.optim.Adam([values], lr=RATE, betas=(0.9, 0.99))
    generator = torch.Generator(start.device).manual_seed(SEED)
    # A few steps are better off without noise, more find better symbols with it (docs/decisions.md).
    noise = min(1.0, max(0.0, (steps - 8) / 24))
    calming = min(1.0, max(0.5, 64 / steps))
    for step in range(steps):
        progress = step / steps
        if step % REFRESH == 0:
            costs = costs_of(values.detach().round())
        adam.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - progress))
        low = values.detach().floor()
        temperature = math.exp(-2 * progress)
        share = _relaxed(values - low, temperature, noise * (1 - calming * progress), generator)
        loss = distortion(low + share) + costs.between(low, share).sum()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        on_step()
    return values.detach().round()


def _relaxed(fraction: Tensor, temperature: float, noise: float, generator: torch.Generator) -> Tensor:
    """How far up each fraction in 0...1 is rounded this time, in 0...1, with a gradient.

    Yang, Bamler and Mandt have ``noise`` 1; without any this is a soft rounding.
    """
    fraction = fraction.clamp(1e-4, 1 - 1e-4)
    favour = (torch.atanh(fraction) - torch.atanh(1 - fraction)) / temperature
    chance = torch.rand(fraction.shape, generator=generator, device=fraction.device).clamp_(1e-6, 1 - 1e-6)
    return torch.sigmoid((favour + noise * torch.logit(chance)) / temperature)

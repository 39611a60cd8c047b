"""Latents refined by gradient descent against the decoder that will read them.

Stochastic Gumbel annealing (Yang, Bamler, Mandt 2020): each latent is rounded down or up at random,
the likelier the nearer, through a relaxation that hardens as the search goes on.  The networks stay as
they are, and so does every decoder.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pillow_lic.search.descent import descend
from pillow_lic.search.influence import HINDSIGHT, slope
from pillow_lic.search.relax import Relaxation

STEPS = (0, 1, 3, 24, 48, 100, 200, 400, 800, 1600)
"""Steps of each effort, of which up to three are looks (:mod:`pillow_lic.search.look`)."""

REFRESH = 32
"""Steps between looks at what a context model makes of the symbols as they are by then."""


def refine(
    start: Tensor,
    distortion: Callable[[Tensor], Tensor],
    relaxation_of: Callable[[Tensor], Relaxation],
    steps: int,
    rate: float,
    influence: Callable[[Tensor], Tensor] | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Values (n,) to quantise instead of latents that lie ``start`` (n,) steps from their means.

    ``distortion`` gives what values (n,) cost in bits, with gradients; ``relaxation_of`` a quantiser with
    what coding costs around given values; ``influence`` bits whose gradients tell what values do to the
    costs of others (:mod:`pillow_lic.search.influence`).  ``rate`` is Adam's learning rate in steps, held for the first
    half and lowered to nothing over the second.  Deterministic on one machine.
    """
    # A few steps are better off without noise, more find better symbols with it (docs/decisions.md).
    noise = min(1.0, max(0.0, (steps - 8) / 24))
    calming = min(1.0, max(0.5, 64 / steps))
    relaxation, push = relaxation_of(start.detach()), torch.zeros_like(start)

    def loss(values: Tensor, step: int, temperature: float, generator: torch.Generator) -> Tensor:
        nonlocal relaxation, push
        if step and step % REFRESH == 0:
            relaxation = relaxation_of(values.detach())
        points, bits = relaxation(values, temperature, noise * (1 - calming * (step / steps)), generator)
        if influence is not None and step % HINDSIGHT == 0:
            push = slope(influence, points)
        return distortion(points) + bits + (push * points).sum()

    return descend(start, loss, steps, rate, on_step)

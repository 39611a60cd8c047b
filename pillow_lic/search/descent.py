"""The gradient descent that refines hyperlatents and latents alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SEED = 0


def descend(
    start: Tensor,
    loss: Callable[[Tensor, int, float, torch.Generator], Tensor],
    steps: int,
    rate: float,
    on_step: Callable[[], None],
) -> Tensor:
    """Values near ``start`` that make a loss small, by Adam.

    ``rate`` is held for the first half of the steps and lowered to nothing over the second.  ``loss`` takes the values,
    the step, the temperature of random choices, which falls from 1 to e^-2, and what they are drawn from.
    Deterministic on one machine.
    """
    values = start.detach().clone().requires_grad_(True)
    adam = torch.optim.Adam([values], lr=rate, betas=(0.9, 0.99))
    generator = torch.Generator(start.device).manual_seed(SEED)
    for step in range(steps):
        progress = step / steps
        adam.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - progress))
        found = loss(values, step, math.exp(-2 * progress), generator)
        adam.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        adam.step()
        on_step()
    return values.detach()

"""Scalar quantisation: rounding to whole steps around the predicted mean."""

from __future__ import annotations

import torch
from torch import Tensor

from pillow_lic.entropy.coder import LIMIT
from pillow_lic.entropy.exact import MEAN_BITS


def quantise(residual: Tensor, index: Tensor, skip: int) -> Tensor:
    """Symbols (int32) of latents so many steps from their means.

    Positions whose table is below ``skip`` are not coded: their symbols are 0.  Raises
    ``ValueError`` if a symbol does not fit 16 bits.
    """
    symbols = torch.where(index < skip, 0.0, torch.round(residual))
    if not bool((symbols.abs() <= LIMIT).all()):
        raise ValueError("a latent is too large to be coded; use a lower quality")
    return symbols.to(torch.int32)


def dequantise(steps: Tensor, mean: Tensor) -> Tensor:
    """Latents in steps, float32: exact, since they and the means are small multiples of 1/64."""
    y: Tensor = steps.to(torch.float32) + mean.to(torch.float32) / 2**MEAN_BITS
    return y

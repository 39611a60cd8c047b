"""Differentiable stand-ins for quantisation, and the ideal code length of quantised values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pillow_lic.models.hyperprior import scale_of


def straight_through(x: Tensor) -> Tensor:
    """Rounding whose gradient is the identity."""
    return x + (x.round() - x).detach()


def additive_noise(x: Tensor) -> Tensor:
    """x plus uniform noise in -1/2...1/2 (Ballé 2017)."""
    return x + torch.empty_like(x).uniform_(-0.5, 0.5)


def gaussian_bits(residual: Tensor, index: Tensor) -> Tensor:
    """Ideal code length in bits of values around a Gaussian's mean, integrated over unit bins."""
    inverse = 1 / (scale_of(index) * math.sqrt(2))
    r = residual.abs()
    # erfc of the nearer and of the farther bin edge: accurate in the tail, where erf cancels.
    mass = 0.5 * (torch.erfc((r - 0.5) * inverse) - torch.erfc((r + 0.5) * inverse))
    return -torch.log2(mass.clamp(min=1e-9))

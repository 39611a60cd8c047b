"""Differentiable stand-ins for quantisation."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from pillow_lic.models.hyperprior import LATTICE
from pillow_lic.options import DEFAULT_LATTICE
from pillow_lic.quantizers import lattice
from pillow_lic.quantizers.adaptive import FACTOR_BITS, FACTORS, LIMIT


def straight_through(x: Tensor) -> Tensor:
    """Rounding whose gradient is the identity."""
    return x + (x.round() - x).detach()


def additive_noise(x: Tensor) -> Tensor:
    """x plus uniform noise in -1/2...1/2 (Ballé 2017)."""
    return x + torch.empty_like(x).uniform_(-0.5, 0.5)


def soft_rounding(x: Tensor, sharpness: float | Tensor) -> Tensor:
    """Soft assignment to the nearest integers (Agustsson et al. 2017): rounding as ``sharpness`` grows.

    The mean of the three nearest integers, weighted by a softmax of -sharpness * squared distance.
    """
    nearest = x.detach().round()
    offsets = torch.tensor([-1.0, 0.0, 1.0], device=x.device)
    distance = (x[..., None] - nearest[..., None] - offsets).square()
    return nearest + (torch.softmax(-sharpness * distance, dim=-1) * offsets).sum(dim=-1)


QUANTISATIONS = ("mixed", "noise", "straight-through", "soft-to-hard")
"""What stands for rounding: noise for the rate and straight-through for the distortion (Minnen 2018), one
of the two for both, or soft assignment that hardens as training goes on."""

SHARPNESS = (4.0, 100.0)
"""Of soft assignment at the start and at the end of training, geometric between."""


def surrogate(x: Tensor, kind: str, progress: float | Tensor) -> tuple[Tensor, Tensor]:
    """Stand-ins for the rounded ``x``: for the rate, and for the distortion; ``progress`` is in 0...1."""
    if kind == "soft-to-hard":
        low, high = SHARPNESS
        soft = soft_rounding(x, low * (high / low) ** progress)
        return soft, soft
    rounded = straight_through(x) if kind != "noise" else additive_noise(x)
    return (additive_noise(x) if kind == "mixed" else rounded), rounded


FIRST = LATTICE + lattice.KINDS[DEFAULT_LATTICE].beyond
"""Scale index from which files have the default lattice."""


@cache
def _lattice_errors(device: torch.device) -> Tensor:
    """Errors of the default lattice for 2**14 groups that lie anywhere, (2**14, side), in steps of scalar latents."""
    kind = lattice.KINDS[DEFAULT_LATTICE]
    anywhere = np.random.default_rng(0).uniform(-8, 8, (2**14, kind.side)).astype(np.float32)
    floors, coset = lattice.quantise(anywhere, kind)
    errors = floors + kind.words[coset] * np.float32(0.5) - anywhere
    wider = 2**FACTOR_BITS / FACTORS[kind.level + LIMIT]
    return torch.from_numpy(errors * wider).to(device, torch.float32)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _bank(device: torch.device) -> Tensor:
    """The same, for compilers a constant that they need not look into."""
    return _lattice_errors(device)


def lattice_noise(x: Tensor) -> Tensor:
    """``x`` plus what the default lattice would change, as noise: quantisation errors of a lattice hardly depend on
    the value, and latents that form a group differ from place to place anyway.
    """
    bank: Tensor = _bank(x.device)
    groups = -(-x.numel() // bank.shape[1])
    chosen = bank[torch.randint(len(bank), (groups,), device=x.device)]
    return x + chosen.flatten()[: x.numel()].view(x.shape)

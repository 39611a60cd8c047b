"""Mean-scale hyperprior (Minnen et al. 2018) for every quality, in the float form that is trained.

h_s is written so that :mod:`pillow_lic.entropy.exact` can repeat it in integers: 1x1 and 3x3
convolutions with zero padding, biases that depend on the quality, a leaky ReLU whose slope is a
power of two, and nearest-neighbour growth by pixel shuffle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pillow_lic.models.transforms import (
    QUALITIES,
    Analysis,
    Architecture,
    Synthesis,
    at_quality,
    rate_weight,
    start_linear,
)

SCALE_MIN, SCALE_MAX, SCALES = 0.11, 60.0, 64
"""The logarithmic ladder of standard deviations that the probability tables are made for."""

SCALE_STEP = math.log(SCALE_MAX / SCALE_MIN) / (SCALES - 1)

SKIP = 8
"""Latents with a standard deviation below 0.245 are not coded, the best limit by BD-rate (docs/decisions.md)."""

LATTICE = 12
"""Latents with a standard deviation from 0.365 up may form groups on a lattice (docs/decisions.md)."""

HYPER_SLOPE = 0.125
"""Slope of h_s's leaky ReLU below zero: a shift by three in the integer network."""

INDEX_GAIN = 8
"""Scale index steps for each unit of h_s's last layer, so that it learns as fast as the mean."""

HYPER_STRIDE = 4
"""Latent positions for each hyperlatent position, in both directions."""


def scale_of(index: Tensor) -> Tensor:
    """Standard deviation of a (fractional) scale index, limited to the ladder's ends."""
    return SCALE_MIN * torch.exp(limited(index, 0.0, SCALES - 1.0) * SCALE_STEP)


class _Limit(torch.autograd.Function):
    """Clamp whose gradient still flows where it leads back inside."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward((x < low).to(torch.int8) - (x > high).to(torch.int8))
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        (outside,) = ctx.saved_tensors
        return torch.where((outside == 0) | (outside * grad < 0), grad, 0), None, None


def limited(x: Tensor, low: float, high: float) -> Tensor:
    """Clamped; gradients still flow where they lead back inside."""
    return _Limit.apply(x, low, high) if x.requires_grad else x.clamp(low, high)  # type: ignore[no-untyped-call]


def gaussian_bits(residual: Tensor, index: Tensor) -> Tensor:
    """Ideal code length in bits of values around a Gaussian's mean, integrated over unit bins."""
    inverse = 1 / (scale_of(index) * math.sqrt(2))
    r = residual.abs()
    # erfc of the nearer and of the farther bin edge: accurate in the tail, where erf cancels.
    mass = 0.5 * (torch.erfc((r - 0.5) * inverse) - torch.erfc((r + 0.5) * inverse))
    return -torch.log2(mass.clamp(min=1e-9))


class QualityConv(nn.Module):
    """A convolution whose bias depends on the quality: (8, out) table, linear between stops."""

    def __init__(self, inputs: int, outputs: int, size: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, size, size))
        # For random numbers on the meta device torch imports its compiler, which takes longer than importing torch.
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=gain * math.sqrt(2 / (inputs * size * size)))
        self.bias = nn.Parameter(torch.zeros(QUALITIES, outputs))

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        out = F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2)
        return out + at_quality(self.bias, quality)[:, :, None, None].to(out.dtype)


class HyperBlock(nn.Module):
    """Residual block of h_s: 1x1, 3x3, 1x1 with the integer network's leaky ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.reduce = QualityConv(channels, hidden, 1)
        self.mix = QualityConv(hidden, hidden, 3)
        self.expand = QualityConv(hidden, channels, 1, gain=0.0)

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        h = F.leaky_relu(self.reduce(x, quality), HYPER_SLOPE)
        h = F.leaky_relu(self.mix(h, quality), HYPER_SLOPE)
        return x + self.expand(h, quality)  # type: ignore[no-any-return]


class HyperSynthesis(nn.Module):
    """z (B, N, h/4, w/4) -> mean and scale index of y, (B, M, h, w) each."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        w = arch.hyper_channels
        self.enter = QualityConv(arch.hyperlatents, 4 * w, 1)
        self.middle = HyperBlock(w)
        self.grow = QualityConv(w, 4 * w, 1)
        self.fine_1 = HyperBlock(w)
        self.fine_2 = HyperBlock(w)
        self.leave = QualityConv(w, 2 * arch.latents, 1, gain=0.1)

    def forward(self, z: Tensor, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The third result is the last hidden layer (B, hyper_channels, h, w), for context models."""
        x = F.leaky_relu(F.pixel_shuffle(self.enter(z, quality), 2), HYPER_SLOPE)
        x = self.middle(x, quality)
        x = F.leaky_relu(F.pixel_shuffle(self.grow(x, quality), 2), HYPER_SLOPE)
        x = self.fine_2(self.fine_1(x, quality), quality)
        # A mean of a hundred steps is half a step off in bfloat16, in training alone.
        with torch.autocast(x.device.type, enabled=False):
            mean, index = self.leave(x.float(), quality).chunk(2, dim=1)
        return mean, index * INDEX_GAIN, x


def _asinh(x: Tensor) -> Tensor:
    """The inverse hyperbolic sine, within 2**-21: of logarithms, which take a tenth of the library's time for it."""
    size = x.abs()
    return torch.log(size + (size.square() + 1).sqrt()).copysign(x)


class HyperAnalysis(nn.Module):
    """y in quantisation steps (B, M, h, w), h and w multiples of 4 -> (B, N, h/4, w/4)."""

    REDUCED = ("enter", "fine", "shrink", "middle")

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        w = arch.hyper_channels
        self.enter = nn.Conv2d(arch.latents, w, 1)
        self.fine = HyperBlock(w)
        self.shrink = nn.Conv2d(4 * w, w, 1)
        self.middle = HyperBlock(w)
        self.leave = nn.Conv2d(4 * w, arch.hyperlatents, 1)

    def forward(self, y: Tensor, quality: Tensor) -> Tensor:
        # asinh: the lowest frequencies are a hundred steps wide, the highest a fraction of one.
        x = F.leaky_relu(self.enter(_asinh(y).to(self.enter.weight.dtype)), HYPER_SLOPE)
        x = self.fine(x, quality)
        x = F.leaky_relu(self.shrink(F.pixel_unshuffle(x, 2)), HYPER_SLOPE)
        x = self.middle(x, quality)
        return self.leave(F.pixel_unshuffle(x, 2).to(self.leave.weight.dtype))  # type: ignore[no-any-return]


class HyperpriorModel(nn.Module):
    """All that is trained: transforms, hyperprior, gains, z's prior; ``contexts`` by name if there are any.

    Gains turn the transforms' units into quantisation steps.  Those of y are kept as logarithms;
    z's inverse gains are interpolated linearly, because the decoder repeats that in integers.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.contexts = nn.ModuleDict()
        self.analysis = Analysis(arch)
        self.synthesis = Synthesis(arch)
        start_linear(self.analysis, self.synthesis, arch)
        self.hyper_analysis = HyperAnalysis(arch)
        self.hyper_synthesis = HyperSynthesis(arch)
        # High-resolution theory: the best step of a uniform quantiser at slope lambda.
        stops = rate_weight(torch.arange(1.0, QUALITIES + 1))
        log_gain = 0.5 * torch.log(stops * math.log(2) / 6)
        self.log_gain = nn.Parameter(log_gain[:, None].repeat(1, arch.latents))
        self.log_inverse_gain = nn.Parameter(-log_gain[:, None].repeat(1, arch.latents))
        self.z_inverse_gain = nn.Parameter(torch.ones(QUALITIES, arch.hyperlatents))
        self.z_mean = nn.Parameter(torch.zeros(QUALITIES, arch.hyperlatents))
        self.z_index = nn.Parameter(torch.full((QUALITIES, arch.hyperlatents), 25.0 / INDEX_GAIN))

    def gains(self, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and inverse gain of y at each quality, (B, M, 1, 1) each."""
        # bfloat16 gains are 1 % off, in training alone: 2 to 3 % of the squared error.
        with torch.autocast(quality.device.type, enabled=False):
            gain = torch.exp(at_quality(self.log_gain, quality))
            inverse = torch.exp(at_quality(self.log_inverse_gain, quality))
        return gain[:, :, None, None], inverse[:, :, None, None]

    def z_prior(self, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inverse gain, mean and scale index of z at each quality, (B, N, 1, 1) each."""
        tables = (self.z_inverse_gain, self.z_mean, self.z_index)
        with torch.autocast(quality.device.type, enabled=False):
            inverse, mean, index = (at_quality(t, quality)[:, :, None, None] for t in tables)
        return inverse.clamp(min=1 / 64), mean, index * INDEX_GAIN

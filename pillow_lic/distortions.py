"""Distortions that networks are trained for and encoders search by: in units of squared error on 0...255."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

MS_SSIM_UNIT = 1250.0
"""Squared error that 1 - MS-SSIM = 1 counts as: about the ratio of the lambdas in published models."""

MS_SSIM_SIDE = 161
"""Pixels that MS-SSIM's five scales and its window of 11 need on either side."""

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
"""Of SSIM."""

CALM = 200.0
"""A variance; best by MS-SSIM on validation crops among 0, 200 and the weight's square root."""


def squared_error(output: Tensor, pixels: Tensor) -> Tensor:
    """Mean squared error, (B,)."""
    return (output - pixels).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def dissimilarity(output: Tensor, pixels: Tensor) -> Tensor:
    """A weight for each squared error, one on the mean of a picture: (1 - SSIM) / 2."""
    unlike = (1 - ssim_map(output, pixels)).clamp(min=1e-3) / 2
    return unlike / unlike.mean(dim=(1, 2, 3), keepdim=True)


@torch.no_grad()
def sensitivity(output: Tensor, pixels: Tensor) -> Tensor:
    """A weight likewise: 1 / (2 variance + C2), with the variance of each colour around each pixel of the original, and
    ``CALM`` besides, so that the flattest parts do not take all the bits.
    """
    variance = (_blur(pixels**2) - _blur(pixels) ** 2).clamp(min=0)
    weight = 1 / (2 * variance + C2 + CALM)
    return weight / weight.mean(dim=(1, 2, 3), keepdim=True)


def ms_ssim(output: Tensor, pixels: Tensor) -> Tensor:
    """1 - MS-SSIM (Wang, Simoncelli, Bovik 2003), scaled; sides of at least ``MS_SSIM_SIDE`` pixels."""
    from pytorch_msssim import ms_ssim as measure

    found: Tensor = measure(output + 127.5, pixels + 127.5, data_range=255.0, size_average=False)
    return MS_SSIM_UNIT * (1 - found)


def ssim_weighted(output: Tensor, pixels: Tensor) -> Tensor:
    """Squared error weighted by where SSIM is low (after Johnston et al. 2018).

    Weights have no gradient of their own, and one on the mean, so that lambda keeps its meaning.
    """
    return (dissimilarity(output, pixels) * (output - pixels).square()).mean(dim=(1, 2, 3))


def ssim_sensitive(output: Tensor, pixels: Tensor) -> Tensor:
    """Squared error weighted by how much SSIM loses by it, likewise."""
    return (sensitivity(output, pixels) * (output - pixels).square()).mean(dim=(1, 2, 3))


def _blur(values: Tensor) -> Tensor:
    """Means over a Gaussian window of 11 with deviation 1.5, edges replicated."""
    x = torch.arange(-5, 6, dtype=values.dtype, device=values.device)
    line = torch.exp(-(x**2) / (2 * 1.5**2))
    line = (line / line.sum()).repeat(values.shape[1], 1)
    padded = F.pad(values, (5, 5, 5, 5), mode="replicate")
    rows = F.conv2d(padded, line[:, None, :, None], groups=values.shape[1])
    return F.conv2d(rows, line[:, None, None, :], groups=values.shape[1])


def ssim_map(one: Tensor, other: Tensor) -> Tensor:
    """SSIM at each pixel (B, C, H, W), Gaussian window of 11 with deviation 1.5, edges replicated."""
    mean_one, mean_other = _blur(one), _blur(other)
    var_one = _blur(one**2) - mean_one**2
    var_other = _blur(other**2) - mean_other**2
    both = _blur(one * other) - mean_one * mean_other
    # The luminance term wants pixels on 0...255.
    mean_one, mean_other = mean_one + 127.5, mean_other + 127.5
    luminance = (2 * mean_one * mean_other + C1) / (mean_one**2 + mean_other**2 + C1)
    return luminance * (2 * both + C2) / (var_one + var_other + C2)


DISTORTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": squared_error,
    "ms-ssim": ms_ssim,
    "ssim-weighted": ssim_weighted,
    "ssim-sensitive": ssim_sensitive,
}

WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda output, _: torch.ones_like(output[:, :1]),
    "ssim-weighted": dissimilarity,
    "ssim-sensitive": sensitivity,
}
"""What squared errors count, by distortion; MS-SSIM has no such weights."""

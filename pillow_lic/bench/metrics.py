"""Distortion measures and BD-rate, from libraries that are kept for the purpose."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pillow_lic.distortions import MS_SSIM_SIDE
from pillow_lic.pixels import psnr

__all__ = ["bd_rate", "decibel", "ms_ssim", "psnr"]


def ms_ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """MS-SSIM in 0...1 (Wang 2003) of two RGB pictures; NaN if a side is below 161 pixels."""
    from pytorch_msssim import ms_ssim as measure

    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return math.nan
    x, y = (torch.from_numpy(np.array(v)).permute(2, 0, 1)[None].float() for v in (a, b))
    return float(measure(x, y, data_range=255))


def decibel(similarity: float) -> float:
    """MS-SSIM on the scale people plot: -10 log10(1 - value)."""
    return math.inf if similarity >= 1 else -10 * math.log10(1 - similarity)


def bd_rate(anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]]) -> float:
    """Mean rate difference in % of ``test`` against ``anchor`` at equal distortion (akima).

    Both are (bpp, dB) points.  NaN where the curves do not overlap, or one has no points.
    """
    import bjontegaard

    curves = [sorted((r, d) for r, d in curve if math.isfinite(d)) for curve in (anchor, test)]
    if not all(curves):
        return math.nan
    low = max(min(d for _, d in c) for c in curves)
    high = min(max(d for _, d in c) for c in curves)
    if low >= high:
        return math.nan
    (r0, d0), (r1, d1) = (map(list, zip(*_rising(c), strict=True)) for c in curves)
    return float(bjontegaard.bd_rate(r0, d0, r1, d1, method="akima", require_matching_points=False, min_overlap=0))


def _rising(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points whose distortion rises with the rate: interpolation needs that."""
    kept: list[tuple[float, float]] = []
    for point in curve:
        if not kept or (point[0] > kept[-1][0] and point[1] > kept[-1][1]):
            kept.append(point)
    return kept

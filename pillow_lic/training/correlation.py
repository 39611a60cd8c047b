"""Correlation loss (Ali et al., NeurIPS 2023): what neighbouring latents still know of each other.

Latents are normalised with their predicted means and scales.  If the hyperprior had found all there is to
know, they would be independent; the loss is the square of what correlation is left, and
training with it moves work of a context model into the transforms and the hyperprior.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MASKS = ("point", "causal", "checkerboard", "cross")


def mask_of(name: str, window: int) -> Tensor:
    """Which neighbours count, (window, window) of 0 and 1; never the centre.

    ``point``: all; ``causal``: those before the centre in raster order; ``checkerboard``: those at an odd
    distance; ``cross``: those of the same row or column.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"the correlation window must be odd and at least 3, not {window}")
    row, column = torch.arange(window)[:, None] - window // 2, torch.arange(window) - window // 2
    masks = {
        "point": torch.ones(window, window),
        "causal": ((row < 0) | ((row == 0) & (column < 0))),
        "checkerboard": (row + column) % 2 != 0,
        "cross": (row == 0) | (column == 0),
    }
    if name not in masks:
        raise ValueError(f"the correlation mask must be one of {', '.join(MASKS)}, not {name!r}")
    mask = masks[name].float()
    mask[window // 2, window // 2] = 0
    return mask


def correlation_maps(normalised: Tensor, window: int) -> Tensor:
    """Mean product of each latent with its neighbours, by channel: (B, M, h, w) -> (B, M, window, window).

    Means are over the positions whose whole window lies inside.
    """
    margin = window // 2
    h, w = normalised.shape[2] - 2 * margin, normalised.shape[3] - 2 * margin
    centre = normalised[:, :, margin : margin + h, margin : margin + w]
    products = [
        (centre * normalised[:, :, y : y + h, x : x + w]).mean(dim=(2, 3)) for y in range(window) for x in range(window)
    ]
    return torch.stack(products, dim=2).reshape(*normalised.shape[:2], window, window)


def correlation_map(normalised: Tensor, window: int) -> Tensor:
    """The mean of all channels' maps, (B, M, h, w) -> (B, window, window)."""
    return correlation_maps(normalised, window).mean(dim=1)


def correlation_loss(normalised: Tensor, window: int, mask: str, *, by_channel: bool = False) -> Tensor:
    """Squared L2 norm of the masked correlation map, (B,).

    ``by_channel`` takes the mean of all channels' norms instead of the norm of their mean, in which
    correlations of opposite sign cancel.
    """
    maps = correlation_maps(normalised, window) * mask_of(mask, window).to(normalised.device)
    if not by_channel:
        return maps.mean(dim=1).square().sum(dim=(1, 2))
    return maps.square().sum(dim=(2, 3)).mean(dim=1)


def correlation_by_channel(normalised: Tensor, window: int) -> Tensor:
    """Correlation of each channel with its own neighbours, (B, M, h, w) -> (M, window, window)."""
    channels = normalised.shape[1]
    margin = window // 2
    size = (normalised.shape[2] - 2 * margin, normalised.shape[3] - 2 * margin)
    patches = F.unfold(normalised.reshape(-1, 1, *normalised.shape[2:]), size)
    patches = patches.reshape(normalised.shape[0], channels, size[0] * size[1], window * window)
    centre = patches[..., window * window // 2]
    products = torch.einsum("bcp,bcpk->ck", centre, patches)
    return (products / products[:, window * window // 2].clamp(min=1e-9)[:, None]).reshape(channels, window, window)

"""Pixels on their way in and out: arrays and tensors, padding, and the tiles of a large picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pillow_lic.header import fits_one_tile
from pillow_lic.models.transforms import LATENT_STRIDE

Pixels = NDArray[np.uint8]

MEGAPIXEL = 2**20
DEFAULT_TILE = 512


@dataclass(frozen=True)
class Tile:
    """A tile's place among the latents: rows ``top`` to ``bottom``, columns ``left`` to ``right``."""

    row: int
    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in latent positions."""
        return self.bottom - self.top, self.right - self.left

    def meets(self, left: int, top: int, right: int, bottom: int) -> bool:
        """Whether any of its pixels lies in a box of pixels."""
        s = LATENT_STRIDE
        return self.top * s < bottom and self.bottom * s > top and self.left * s < right and self.right * s > left

    def grown(self, margin: int, height: int, width: int) -> Tile:
        """The tile with a margin on every side, as far as there are latents."""
        return Tile(
            self.row,
            max(0, self.top - margin),
            min(height, self.bottom + margin),
            max(0, self.left - margin),
            min(width, self.right + margin),
        )


def default_tile(width: int, height: int) -> int:
    """Tile side for a picture: 512 above one megapixel, else 0 for a single tile."""
    small = width * height <= MEGAPIXEL and fits_one_tile(width, height)
    return 0 if small else DEFAULT_TILE


def latent_size(pixels: int) -> int:
    """Latent positions that a side of so many pixels needs."""
    return -(-pixels // LATENT_STRIDE)


def step_of(width: int, height: int, tile: int) -> int:
    """Latent positions from one tile to the next."""
    return tile // LATENT_STRIDE or max(latent_size(width), latent_size(height))


def tiles_of(width: int, height: int, tile: int) -> Iterator[Tile]:
    """Tiles in raster order; ``tile`` is their side in pixels, 0 for a single one."""
    w, h, step = latent_size(width), latent_size(height), step_of(width, height, tile)
    for row, top in enumerate(range(0, h, step)):
        for left in range(0, w, step):
            yield Tile(row, top, min(h, top + step), left, min(w, left + step))


def tile_pixels(array: Pixels, tile: Tile) -> Tensor:
    """A tile's pixels, (1, 3, H, W) float32 in -127.5...127.5.

    Where the tile reaches past the picture its last row and column are repeated.
    """
    height, width = array.shape[:2]
    s = LATENT_STRIDE
    part = array[tile.top * s : tile.bottom * s, tile.left * s : tile.right * s]
    missing = (max(0, tile.bottom * s - height), max(0, tile.right * s - width))
    if any(missing):
        pads = ((0, missing[0]), (0, missing[1]), (0, 0))[: array.ndim]
        part = np.pad(part, pads, mode="edge")
    if part.ndim == 2:
        part = np.repeat(part[:, :, None], 3, axis=2)
    x = torch.from_numpy(np.array(part)).permute(2, 0, 1)[None]  # a copy: the array may be read-only
    return x.to(torch.float32) - 127.5


def put_pixels(array: Pixels, tile: Tile, values: Tensor, scale: int = 1) -> None:
    """Round and clamp synthesised pixels (3, H, W) of a tile into the picture, which is 1/``scale`` as large."""
    s = LATENT_STRIDE // scale
    target = array[tile.top * s : tile.bottom * s, tile.left * s : tile.right * s]
    values = values[:, : target.shape[0], : target.shape[1]]
    if array.ndim == 2:
        values = values.mean(dim=0, keepdim=True)
    target[...] = rounded(values).permute(1, 2, 0).cpu().numpy().reshape(target.shape)


def rounded(values: Tensor) -> Tensor:
    """Synthesised values in -127.5...127.5 as uint8."""
    return (values + 127.5).round_().clamp_(0, 255).to(torch.uint8)


def pad_to_multiple(y: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of (B, C, h, w) until both sides are multiples."""
    h, w = y.shape[2:]
    pads = (0, -w % multiple, 0, -h % multiple)
    return torch.nn.functional.pad(y, pads, mode="replicate") if any(pads) else y


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """PSNR in dB over all samples of two 8-bit pictures; infinite if they are equal."""
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / mse) if mse else math.inf

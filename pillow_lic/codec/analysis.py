"""Pixels to latents and symbols, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pillow_lic import options
from pillow_lic.codec.common import crop
from pillow_lic.devices import block_dtype
from pillow_lic.header import Header
from pillow_lic.models.loading import OneQuality
from pillow_lic.pixels import Pixels, Tile, latent_size, tile_pixels, tiles_of
from pillow_lic.quantizers import adaptive
from pillow_lic.symbols import CodedTile, quality_tensor, quantise


@dataclass(frozen=True)
class Part:
    """A tile on its way into a file: its place, its symbols, and what an encoder's search needs:
    pixels (1, 3, H, W) and latents in steps (1, M, h, w) of the tile and a margin ``around`` it.
    """

    place: Tile
    coded: CodedTile
    around: Tile
    pixels: Tensor
    y: Tensor


def analyse(model: OneQuality, array: Pixels, header: Header, device: torch.device) -> Iterator[CodedTile]:
    """The symbols of each tile in turn."""
    for part in analysed(model, array, header, device):
        yield part.coded


def analysed(
    model: OneQuality,
    array: Pixels,
    header: Header,
    device: torch.device,
    levels: adaptive.Levels | None = None,
    *,
    searching: bool = False,
) -> Iterator[Part]:
    """Each tile in turn; with margins as wide as the synthesis looks if a search will follow."""
    w, h = latent_size(header.width), latent_size(header.height)
    quality = quality_tensor(header.quality_code, device)
    margin = model.arch.synthesis_margin if searching else 0
    for tile in tiles_of(header.width, header.height, header.tile):
        around = tile.grown(model.arch.analysis_margin + margin, h, w)
        pixels = tile_pixels(array, around).to(device).contiguous(memory_format=torch.channels_last)
        y = latents_of(model, pixels, header, quality)
        own = None if levels is None else adaptive.of_tile(levels, tile)
        coded = quantise(model, crop(y, tile, around), header.quality_code, quality, header.quantizer, own)
        yield Part(tile, coded, around, pixels, y)


def latents_of(model: OneQuality, pixels: Tensor, header: Header, quality: Tensor) -> Tensor:
    """y in nominal steps (B, M, h, w) of pixels (B, 3, 16 h, 16 w) in -127.5...127.5."""
    device = pixels.device
    gain = model.gain(options.quality_of(header.quality_code)).to(device)
    y: Tensor = model.analysis(device, block_dtype(device))(pixels, quality) * gain
    return y

"""A folder of images as one flat buffer of pixels, and random crops from it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pillow_lic.inputs import DAMAGED, has_more_than_8_bits

SUFFIXES = {".avif", ".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def image_files(folder: str | Path) -> list[Path]:
    """The images below a folder, sorted; ``FileNotFoundError`` if there are none."""
    root = Path(folder)
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise FileNotFoundError(f"no images ({', '.join(sorted(SUFFIXES))}) in {root}")
    return files


def load_rgb(path: str | Path) -> np.ndarray:
    """An image as (H, W, 3) uint8, upright; ``ValueError`` if it cannot be read or has more than 8 bits a channel,
    which a conversion would make all white, or (of colours, whose high bytes Pillow keeps) nearly black.
    """
    try:
        with Image.open(path) as opened:
            image: Image.Image = opened
            if has_more_than_8_bits(image) or any(";16" in str(tile.args) for tile in opened.tile):
                raise ValueError(f"its mode is {image.mode} of more bits, and pictures here have 8 bits a channel")
            image.load()
            with suppress(*DAMAGED):  # EXIF that says nothing of a direction
                image = ImageOps.exif_transpose(image)
            return np.asarray(image.convert("RGB"))
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no picture to learn from: {error}") from error


def _flat(arrays: list[np.ndarray]) -> np.ndarray:
    """All pixels, (n, 3), picture by picture; takes the pictures out of the list, so that none is held twice."""
    flat = np.empty((sum(a.shape[0] * a.shape[1] for a in arrays), 3), np.uint8)
    at = 0
    while arrays:
        pixels = arrays.pop(0).reshape(-1, 3)
        flat[at : at + len(pixels)] = pixels
        at += len(pixels)
    return flat


class Crops:
    """Every image of a folder, decoded once, and random crops cut on the device.

    Crops are picked by random numbers made on the device, in proportion to an image's area, and
    mirrored half of the time; nothing synchronises with the host.
    """

    def __init__(self, folder: str | Path, size: int, device: torch.device) -> None:
        files = image_files(folder)
        arrays = [a for f in files if min((a := load_rgb(f)).shape[:2]) >= size]
        if not arrays:
            raise ValueError(f"no image in {folder} has {size} pixels on its smaller side")
        shapes = torch.tensor([a.shape[:2] for a in arrays])
        area = shapes[:, 0] * shapes[:, 1]
        self.count, self.too_small = len(arrays), len(files) - len(arrays)
        self.pixels = torch.from_numpy(_flat(arrays)).to(device)
        self.start = (area.cumsum(0) - area).to(device)
        self.height, self.width = shapes[:, 0].to(device), shapes[:, 1].to(device)
        self.share = (area / area.sum()).to(device)
        self.line = torch.arange(size, device=device)
        self.size = size

    def batch(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 3, size, size) float32 in -127.5...127.5, channels last in memory."""
        device = self.pixels.device
        image = torch.multinomial(self.share, count, replacement=True, generator=generator)
        u = torch.rand(3, count, device=device, generator=generator)
        width = self.width[image]
        top = (u[0] * (self.height[image] - self.size + 1)).long()
        left = (u[1] * (width - self.size + 1)).long()
        flip = (u[2] < 0.5)[:, None]
        columns = torch.where(flip, self.line.flip(0), self.line) + left[:, None]
        rows = (self.line + top[:, None]) * width[:, None]
        index = self.start[image][:, None, None] + rows[:, :, None] + columns[:, None, :]
        return self.pixels[index].permute(0, 3, 1, 2).float() - 127.5

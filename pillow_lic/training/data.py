"""A folder of images as one flat buffer of pixels, and random crops from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = {".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def image_files(folder: str | Path) -> list[Path]:
    """The images below a folder, sorted; ``FileNotFoundError`` if there are none."""
    root = Path(folder)
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise FileNotFoundError(f"no images ({', '.join(sorted(SUFFIXES))}) in {root}")
    return files


def load_rgb(path: str | Path) -> np.ndarray:
    """An image as (H, W, 3) uint8, upright."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


class Crops:
    """Every image of a folder, decoded once, and random crops cut on the device.

    Crops are picked by random numbers made on the device, in proportion to an image's area, and
    mirrored half of the time; nothing synchronises with the host.
    """

    def __init__(self, folder: str | Path, size: int, device: torch.device) -> None:
        arrays = [a for f in image_files(folder) if min((a := load_rgb(f)).shape[:2]) >= size]
        if not arrays:
            raise ValueError(f"no image in {folder} has {size} pixels on its smaller side")
        flat = np.concatenate([a.reshape(-1, 3) for a in arrays])
        shapes = torch.tensor([a.shape[:2] for a in arrays])
        area = shapes[:, 0] * shapes[:, 1]
        self.count = len(arrays)
        self.pixels = torch.from_numpy(flat).to(device)
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

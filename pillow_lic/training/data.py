"""A folder of images as one flat buffer of pixels, and random crops from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pillow_lic.pictures import image_files, load_rgb


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

    ``amount`` is how many images and pixels there are: it tells one folder from another.
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
        self.amount = [self.count, int(area.sum())]
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

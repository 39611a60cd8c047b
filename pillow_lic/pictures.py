"""Photographs in a folder, to learn from and to measure on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pillow_lic.inputs import DAMAGED, has_more_than_8_bits

SUFFIXES = {".avif", ".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def image_files(folder: str | Path) -> list[Path]:
    """The images below a folder, sorted, but for hidden ones; ``FileNotFoundError`` if there are none."""
    root = Path(folder)
    found = (p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    files = sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts))
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
        raise ValueError(f"{path} cannot be used: {error}") from error

"""Runs the codecs over a folder: every image at every setting, one real file each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TypeVar

import numpy as np
from PIL import Image

from pillow_lic.bench.codecs import Codec, decode
from pillow_lic.bench.metrics import ms_ssim, psnr
from pillow_lic.pictures import image_files, load_rgb
from pillow_lic.pixels import Pixels

T = TypeVar("T")

LONG = 2.0
"""Seconds beyond which work is timed once."""


@dataclass(frozen=True)
class Measurement:
    """One image, one codec, one setting.  Times in seconds, the better of two runs where the first is short."""

    image: str
    codec: str
    setting: float
    pixels: int
    bytes: int
    bpp: float
    psnr: float
    ms_ssim: float
    encode: float
    decode: float


@dataclass(frozen=True)
class Point:
    """A codec's setting over all images: means, and medians of the times."""

    setting: float
    bpp: float
    psnr: float
    ms_ssim: float
    encode: float
    decode: float


def measure_image(name: str, pixels: Pixels, codec: Codec, setting: float) -> Measurement:
    """Code one image through Pillow and measure what comes back."""
    image = Image.fromarray(pixels)
    encode_time, data = _timed(lambda: codec.encode(image, setting))
    decode_time, back = _timed(lambda: decode(data))
    result = np.asarray(back.convert("RGB"))
    area = pixels.shape[0] * pixels.shape[1]
    return Measurement(
        name, codec.name, setting, area, len(data), 8 * len(data) / area,
        psnr(pixels, result), ms_ssim(pixels, result), encode_time, decode_time,
    )  # fmt: skip


def measure_folder(
    folder: str | Path,
    codecs: Sequence[Codec],
    on_step: Callable[[int, int], None] | None = None,
    *,
    images: int | None = None,
    side: int | None = None,
) -> Iterator[Measurement]:
    """Every image below a folder with every codec and setting, as they are made.

    ``images`` takes so many of them, evenly spread; ``side`` so many pixels a side from their centres.
    """
    files = spread(image_files(folder), images)
    total = len(files) * sum(len(c.values) for c in codecs)
    done = 0
    _warm_up(codecs)
    for file in files:
        pixels = centre(load_rgb(file), side)
        for codec in codecs:
            for setting in codec.values:
                yield measure_image(file.relative_to(folder).as_posix(), pixels, codec, setting)
                done += 1
                if on_step:
                    on_step(done, total)


def mean_points(measurements: Sequence[Measurement], codec: Codec) -> list[Point]:
    """The codec's rate-distortion curve: means over the images at each setting."""
    points = []
    for setting in codec.values:
        rows = [m for m in measurements if m.codec == codec.name and m.setting == setting]
        if rows:
            means = [fmean(getattr(m, name) for m in rows) for name in ("bpp", "psnr", "ms_ssim")]
            times = [median(getattr(m, name) for m in rows) for name in ("encode", "decode")]
            points.append(Point(setting, *means, *times))
    return points


def spread(files: Sequence[Path], count: int | None) -> list[Path]:
    """So many files at equal distances, or all."""
    if count is None or count >= len(files):
        return list(files)
    return [files[n * len(files) // count] for n in range(count)]


def centre(pixels: Pixels, side: int | None) -> Pixels:
    """The middle of a picture, at most so many pixels a side, or all of it."""
    if side is None:
        return pixels
    top, left = (max(0, (n - side) // 2) for n in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    best = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - started)
        if best > LONG:
            break
    return best, result


def _warm_up(codecs: Sequence[Codec]) -> None:
    """Load weights and libraries before the first image is timed."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for codec in codecs:
        decode(codec.encode(Image.fromarray(noise), codec.values[0]))

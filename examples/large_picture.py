"""How long a 12-megapixel photograph takes to save, open, and make small, and how much memory.

    python examples/large_picture.py

The picture is made of scikit-image's photographs, enlarged to 800x600.  Each step runs in a process of its own,
whose peak memory includes Python, torch and the weights.  Ratios are of times in one process, medians of three.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

import pillow_lic
from pillow_lic.pixels import psnr

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
SIZE, PART = (4000, 3000), (800, 600)


def picture() -> Image.Image:
    """The photographs side by side, every third one mirrored."""
    from skimage import data

    whole = Image.new("RGB", SIZE)
    places = [(x, y) for y in range(0, SIZE[1], PART[1]) for x in range(0, SIZE[0], PART[0])]
    for n, place in enumerate(places):
        part = Image.fromarray(getattr(data, PHOTOGRAPHS[n % 4])()).resize(PART, Image.Resampling.LANCZOS)
        whole.paste(part if n % 3 else part.transpose(Image.Transpose.FLIP_LEFT_RIGHT), place)
    return whole


def save(path: Path) -> None:
    """Save the picture."""
    with Image.open(path.with_suffix(".png")) as image:
        image.load()
        start = time.perf_counter()
        image.save(path)
        report(f"save: {time.perf_counter() - start:.1f} s, {path.stat().st_size} bytes")


def load(path: Path) -> None:
    """Open and decode it."""
    start = time.perf_counter()
    with Image.open(path) as image:
        image.load()
    report(f"open: {time.perf_counter() - start:.1f} s, weights included")


def small(path: Path) -> None:
    """Decode it whole and in part, and say how they compare."""
    seconds: dict[str, list[float]] = {}
    pictures: dict[str, Image.Image] = {}

    def clock(name: str, scale: int = 1, thumbnail: bool = False) -> None:
        start = time.perf_counter()
        image = pillow_lic.open(path, size=(SIZE[0] // scale, SIZE[1] // scale))
        if thumbnail:
            image.thumbnail((256, 256))
        image.load()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        pictures[name] = image

    for _ in range(4):
        clock("whole")
        for scale in (2, 4, 8):
            clock(f"draft at 1/{scale}", scale)
        clock("thumbnail((256, 256))", thumbnail=True)
    whole = median(seconds["whole"][1:])
    for name, times in seconds.items():
        expected = pictures["whole"]
        if name.startswith("draft"):
            expected = expected.reduce(int(name[-1]))
        elif name.startswith("thumbnail"):
            expected = expected.copy()
            expected.thumbnail((256, 256))
        alike = psnr(np.asarray(pictures[name]), np.asarray(expected))
        near = "" if name == "whole" else f", {alike:.1f} dB from the whole reduced"
        print(f"{name}: {median(times[1:]):.2f} s, {whole / median(times[1:]):.1f} times as fast{near}")


def report(line: str) -> None:
    """A line with this process's peak memory."""
    print(f"{line}; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        {"save": save, "load": load, "small": small}[sys.argv[1]](Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            picture().save(Path(folder) / "x.png", compress_level=1)
            for step in ("save", "load", "small"):
                subprocess.run([sys.executable, __file__, step, str(Path(folder) / "x.lic")], check=True)

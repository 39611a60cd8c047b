"""What the beginning of a file shows: PSNR against the share of the file read, beside progressive JPEG and JPEG XL.

    python examples/progressive.py FOLDER --quality 4 --output docs/images/progressive.png

Each image is saved as a progressive .lic file; JPEG and JPEG XL (cjxl -p and djxl of libjxl, if they are installed) get
settings that give files of about its size, and all are cut at the same shares of it.  Means over the images; a share
counts once every image opens.  Needs the extra [bench].
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from shutil import which
from statistics import fmean

import numpy as np
from PIL import Image, ImageFile

import pillow_lic
from pillow_lic.bench.metrics import psnr
from pillow_lic.pictures import image_files, load_rgb

pillow_lic.register_lic_opener()
ImageFile.LOAD_TRUNCATED_IMAGES = True

SHARES = [n / 20 for n in range(1, 21)]


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    """A file by Pillow."""
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def nearest(size: int, encode: Callable[[float], bytes], low: float, high: float) -> bytes:
    """The largest of some files of at most a size; ``encode``'s grow with its number."""
    best = encode(low)
    for _ in range(9):
        middle = (low + high) / 2
        data = encode(middle)
        if len(data) <= size:
            best, low = data, middle
        else:
            high = middle
    return best


def jpeg(image: Image.Image, quality: float) -> bytes:
    """A progressive file by Pillow."""
    return save(image, "JPEG", quality=round(quality), progressive=True, optimize=True)


def jpeg_xl(image: Image.Image, quality: float) -> bytes:
    """A progressive file by cjxl."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "x.png"), Path(folder, "x.jxl")
        image.save(source)
        subprocess.run(["cjxl", source, target, "-p", "-q", str(quality)], check=True, capture_output=True)
        return target.read_bytes()


def shown(data: bytes) -> np.ndarray | None:
    """The pixels of a cut file; None if it does not open."""
    if data[:2] == b"\xff\x0a" or data[4:8] == b"JXL ":
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "x.jxl"), Path(folder, "x.png")
            source.write_bytes(data)
            subprocess.run(["djxl", "--allow_partial_files", source, target], check=False, capture_output=True)
            return load_rgb(target) if target.exists() else None
    try:
        with Image.open(BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except OSError:
        return None


def curve(original: np.ndarray, data: bytes, size: int) -> list[float | None]:
    """PSNR of a file cut at each share of a size."""
    pictures = (shown(data[: round(share * size)]) for share in SHARES)
    return [None if found is None else psnr(original, found) for found in pictures]


def main() -> None:
    """Print the curves and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--quality", type=float, default=4)
    parser.add_argument("--output", default="progressive.png")
    args = parser.parse_args()
    curves: dict[str, list[list[float | None]]] = {}
    growth = []
    for file in image_files(args.folder):
        original = load_rgb(file)
        image = Image.fromarray(original)
        plain = save(image, "LIC", quality=args.quality)
        data = save(image, "LIC", quality=args.quality, progressive=True)
        growth.append(100 * (len(data) / len(plain) - 1))
        files = {"LIC": data}
        files["JPEG"] = nearest(len(data), partial(jpeg, image), 5, 95)
        if which("cjxl") and which("djxl"):
            files["JPEG XL"] = nearest(len(data), partial(jpeg_xl, image), 5, 95)
        for name, coded in files.items():
            curves.setdefault(name, []).append(curve(original, coded, len(data)))
        print(f"{file.stem}: {len(data)} bytes, {growth[-1]:+.2f} % against plain", flush=True)
    print(f"mean {fmean(growth):+.2f} %, largest {max(growth):+.2f} %")

    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, found in curves.items():
        points = [
            (100 * share, fmean(v for v in values if v is not None))
            for share, values in zip(SHARES, zip(*found, strict=True), strict=True)
            if None not in values
        ]
        axes.plot(*zip(*points, strict=True), marker=".", label=name)
        print(name, " ".join(f"{share:.0f}%:{value:.2f}" for share, value in points))
    axes.set(
        xlabel="share of the file read, %",
        ylabel="PSNR, dB",
        title=f"files of the size of LIC's at quality {args.quality:g}",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.output, dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()

"""Save photographs as .lic, open them again, and compare with JPEG, WebP and AVIF of the same size.

    python examples/demo.py [IMAGE or FOLDER ...]

Without arguments it takes photographs that scikit-image and scikit-learn carry.
"""

from __future__ import annotations

import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

import pillow_lic
from pillow_lic.bench.codecs import AVIF, JPEG, WEBP, Codec
from pillow_lic.bench.metrics import ms_ssim, psnr
from pillow_lic.pictures import image_files, load_rgb

pillow_lic.register_lic_opener()

QUALITIES = (1.5, 3, 5, 7)
SHOWN = 1.5
OUTPUT = Path("demo")
CROP = 320


def photographs(arguments: list[str]) -> dict[str, np.ndarray]:
    """The user's images, or five that come with libraries."""
    if arguments:
        paths = [p for a in arguments for p in (image_files(a) if Path(a).is_dir() else [Path(a)])]
    else:
        import skimage
        import sklearn

        first = Path(skimage.__file__).parent / "data"
        second = Path(sklearn.__file__).parent / "datasets" / "images"
        paths = [first / "astronaut.png", first / "chelsea.png", first / "coffee.png"]
        paths += [second / "china.jpg", second / "flower.jpg"]
    stems = [p.stem for p in paths]
    named = {p.stem if stems.count(p.stem) == 1 else f"{n}-{p.stem}": p for n, p in enumerate(paths, 1)}
    return {name: load_rgb(path) for name, path in named.items()}


def nearest(codec: Codec, image: Image.Image, size: int) -> bytes:
    """The codec's file whose size is nearest, searched over its quality 1...100."""
    low, high = 1, 100
    best = codec.encode(image, 50)
    while low <= high:
        middle = (low + high) // 2
        data = codec.encode(image, middle)
        if abs(len(data) - size) < abs(len(best) - size):
            best = data
        low, high = (middle + 1, high) if len(data) < size else (low, middle - 1)
    return best


def row(name: str, pixels: np.ndarray, data: bytes, encode: float | None = None) -> np.ndarray:
    """Open a file, print its line of the table, and return its pixels."""
    started = time.perf_counter()
    with Image.open(BytesIO(data)) as opened:
        back = np.asarray(opened.convert("RGB"))
    decode = time.perf_counter() - started
    bpp = 8 * len(data) / (pixels.shape[0] * pixels.shape[1])
    encoded = f"{1000 * encode:9.0f}" if encode is not None else "        -"
    print(
        f"  {name:<12} {len(data):8d} {bpp:7.3f} {psnr(pixels, back):8.2f} {ms_ssim(pixels, back):8.4f}"
        f" {encoded} {1000 * decode:9.0f}"
    )
    return back


def side_by_side(pictures: dict[str, np.ndarray], path: Path) -> None:
    """The middle of each picture, next to one another with their names below."""
    height, width = next(iter(pictures.values())).shape[:2]
    h, w = min(CROP, height), min(CROP, width)
    top, left = (height - h) // 2, (width - w) // 2
    sheet = Image.new("RGB", (len(pictures) * (w + 8), h + 28), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for n, (label, picture) in enumerate(pictures.items()):
        sheet.paste(Image.fromarray(picture[top : top + h, left : left + w]), (n * (w + 8), 0))
        draw.text((n * (w + 8) + 4, h + 4), label, fill="black", font=font)
    sheet.save(path)


def main() -> None:
    """Code every photograph at several qualities and print the table."""
    try:
        photos = photographs(sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.exit(f"demo: {error}")
    OUTPUT.mkdir(exist_ok=True)
    # The first picture loads torch and the weights; that is not what the table is to show.
    warm = Image.fromarray(next(iter(photos.values())))
    warm.save(BytesIO(), "LIC")
    progress = tqdm(total=len(photos) * len(QUALITIES), desc="demo", delay=2, file=sys.stderr)
    for name, pixels in photos.items():
        image = Image.fromarray(pixels)
        print(f"\n{name}, {image.width} x {image.height}")
        print(f"  {'':<12} {'bytes':>8} {'bpp':>7} {'PSNR dB':>8} {'MS-SSIM':>8} {'encode ms':>9} {'decode ms':>9}")
        for quality in QUALITIES:
            path = OUTPUT / f"{name}-q{quality:g}.lic"
            started = time.perf_counter()
            image.save(path, quality=quality)
            encode = time.perf_counter() - started
            data = path.read_bytes()
            pictures = {"original": pixels}
            pictures[f"LIC, {len(data)} bytes"] = row(f"LIC {quality:g}", pixels, data, encode)
            for codec in (AVIF, WEBP, JPEG):
                other = nearest(codec, image, len(data))
                pictures[f"{codec.name}, {len(other)} bytes"] = row(codec.name, pixels, other)
            if quality == SHOWN:
                side_by_side(pictures, OUTPUT / f"{name}.png")
            progress.update()
    progress.close()
    print(f"\nfiles and side-by-side pictures (quality {SHOWN:g}) are in {OUTPUT.resolve()}")


if __name__ == "__main__":
    main()

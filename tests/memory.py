"""Peak memory of opening a picture, against the pixels that its header declares.

    python tests/memory.py            pictures of 1 to 16 megapixels in tiles of 512, and tiles of 2048 pixels
    python tests/memory.py --small    the golden model, for the test suite

Each picture is made in one process and opened in another, which reports by how much its peak grew beyond what
importing, loading the model and opening a small picture take.  Prints the growths and the line through them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

BASE, BASE_OF_LARGE_TILES, SLOPE = 160, 600, 24
"""The bound: so many MB for tiles of at most 512 pixels, or up to 2048, and so many bytes a pixel."""

SIZES = ((1024, 1024, 512), (2048, 2048, 512), (3072, 3072, 512), (4096, 4096, 512))
LARGE_TILES = ((2048, 2048, 2048), (4096, 2048, 2048))


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--make", nargs=4, metavar=("WIDTH", "HEIGHT", "TILE", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--open", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.small:
        os.environ["PILLOW_LIC_MODELS"] = str(HERE / "golden")
    if args.make:
        width, height, tile = map(int, args.make[:3])
        make(width, height, tile, args.make[3], small=args.small)
        return 0
    if args.open:
        print(grown(args.open))
        return 0
    found = {size: measured(*size, small=args.small) for size in (SIZES if args.small else (*SIZES, *LARGE_TILES))}
    for (width, height, tile), bytes_ in found.items():
        print(
            f"{width}x{height} in tiles of {tile}: {bytes_ / 2**20:.0f} MB, {bytes_ / width / height:.1f} bytes a pixel"
        )
    slope, base = np.polyfit([w * h for w, h, _ in SIZES], [found[size] for size in SIZES], 1)
    print(f"line: {base / 2**20:.0f} MB + {slope:.1f} bytes a pixel")
    return 0


def measured(width: int, height: int, tile: int, *, small: bool) -> int:
    """Bytes by which opening such a picture raises a process's peak."""
    option = ["--small"] if small else []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "picture.lic")
        make = [sys.executable, __file__, *option, "--make", str(width), str(height), str(tile), path]
        subprocess.run(make, check=True)
        opened = [sys.executable, __file__, *option, "--open", path]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # each has buffers of its own
        return int(subprocess.run(opened, check=True, capture_output=True, text=True, env=one_thread).stdout)


def make(width: int, height: int, tile: int, path: str, *, small: bool) -> None:
    """Save a gradient with some texture; quickly."""
    from PIL import Image

    import pillow_lic

    pillow_lic.register_lic_opener()
    part = Image.radial_gradient("L").convert("RGB")
    picture = Image.new("RGB", (width, height), "teal")
    for left in range(0, width, 512):
        picture.paste(part, (left, left % height))
    model = str(HERE / "golden" / "lattice.safetensors") if small else "mse"
    picture.save(path, model=model, quality=4, tile=tile)


def grown(path: str) -> int:
    """Bytes by which the peak grows when a file is opened and loaded."""
    from io import BytesIO

    from PIL import Image

    import pillow_lic

    pillow_lic.register_lic_opener()
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(path) as image:
        model = image.info["model_id"]
    out = BytesIO()
    small = str(HERE / "golden" / "lattice.safetensors")
    Image.new("RGB", (32, 32)).save(out, "LIC", model=small if "PILLOW_LIC_MODELS" in os.environ else "mse")
    with Image.open(out) as image:
        assert image.info["model_id"] == model
        image.load()
    before = peak()
    with Image.open(path) as image:
        image.load()
    return peak() - before


def peak() -> int:
    """The most bytes that this process has held; getrusage would count what its parent held when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    sys.exit(main())

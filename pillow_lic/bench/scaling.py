"""How time grows with the number of files, and time and memory with a picture's size; plots of both."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pillow_lic.bench.stages import fitted
from pillow_lic.bench.throughput import figures_of, run
from pillow_lic.pictures import image_files

FILES = (10, 30, 100, 300, 1000)
SIDES = (320, 720, 1600, 3200, 5056, 7072)
"""Square pictures of 0.1 to 50 megapixels."""

MEASURE = """
import json, resource, sys, time
from io import BytesIO
from PIL import Image
import torch
import pillow_lic
torch.set_num_threads(1)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
with Image.open(sys.argv[1]) as image:
    image.load()
small, out = BytesIO(), BytesIO()
image.crop((0, 0, 64, 64)).save(small, "LIC")
Image.open(small).load()
base, started = peak(), time.process_time()
image.save(out, "LIC")
times, memory = [time.process_time() - started], [peak() - base]
del image
base, started = peak(), time.process_time()
with Image.open(out) as back:
    back.load()
times.append(time.process_time() - started)
print(json.dumps([*times, *memory, peak()]))
"""


def by_files(folder: Path, counts: Sequence[int], jobs: int) -> list[tuple[int, float]]:
    """Processor seconds that ``lic convert`` takes for so many pictures of 128x96, process starts included."""
    small = []
    for file in image_files(folder)[:10]:
        with Image.open(file) as image:
            small.append(fitted(image).resize((128, 96)))
    found = []
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            photos = Path(name, "photos")
            photos.mkdir()
            for n in range(count):
                small[n % len(small)].save(photos / f"{n:04}.png")
            argv = ["-m", "pillow_lic", "convert", "--jobs", jobs, photos, Path(name, "lic")]
            found.append((count, run(argv).processor))
    return found


def by_size(folder: Path, sides: Sequence[int]) -> list[tuple[float, float, float, float, float]]:
    """Megapixels; processor seconds of encoding and of decoding on one core; MiB that encoding takes beyond the
    process with its weights; the largest memory of the process in MiB.
    """
    with Image.open(image_files(folder)[0]) as image:
        picture = image.convert("RGB")
    found = []
    for side in sides:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, "x.bmp")
            picture.resize((side, side), Image.Resampling.BICUBIC).save(path)
            encode, decode, memory, peak = figures_of(MEASURE, path)
        found.append((side * side / 1e6, encode, decode, memory, peak))
    return found


def plot(path: Path, files: Sequence[tuple[int, float]], sizes: Sequence[tuple[float, ...]]) -> None:
    """Three plots beside each other: time by files, time by megapixels, memory by megapixels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (first, second, third) = pyplot.subplots(1, 3, figsize=(12, 3.6))
    first.plot(*zip(*files, strict=True), marker="o")
    first.set(xlabel="files of 128x96", ylabel="processor seconds", title="lic convert")
    megapixels, encode, decode, _, peak = zip(*sizes, strict=True)
    second.plot(megapixels, encode, marker="o", label="encode")
    second.plot(megapixels, decode, marker="o", label="decode")
    second.set(xlabel="megapixels", ylabel="seconds of one core", title="one picture")
    second.legend()
    third.plot(megapixels, peak, marker="o")
    third.set(xlabel="megapixels", ylabel="MiB", title="largest memory of the process")
    for axes in (first, second, third):
        axes.set(xlim=0, ylim=0)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def text(files: Sequence[tuple[int, float]], sizes: Sequence[tuple[float, ...]]) -> str:
    """The plots' figures."""
    lines = [f"{'files of 128x96':>16}{'processor s':>14}"]
    lines += [f"{count:>16}{seconds:>14.1f}" for count, seconds in files]
    lines.append(f"{'megapixels':>16}{'encode, s':>12}{'decode, s':>12}{'encoding takes, MiB':>22}{'process, MiB':>14}")
    lines += [f"{mp:>16.1f}{e:>12.2f}{d:>12.2f}{m:>22.0f}{peak:>14.0f}" for mp, e, d, m, peak in sizes]
    return "\n".join(lines)

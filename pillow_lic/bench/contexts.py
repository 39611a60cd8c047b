"""What context models do to size and time: the same latents, coded by each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import fmean, median

from PIL import Image

from pillow_lic import codec, container
from pillow_lic.bench.codecs import LIC
from pillow_lic.bench.measure import spread
from pillow_lic.models.loading import Model, load_model
from pillow_lic.pictures import image_files, load_rgb


@dataclass(frozen=True)
class ContextPoint:
    """A context model at one quality: bytes against "none" in %, and median decode time in seconds."""

    context: str
    quality: float
    size: float
    decode: float


def compare(
    folder: str | Path,
    model: str = "mse",
    on_step: Callable[[int, int], None] | None = None,
    rounds: int = 3,
    images: int | None = None,
) -> list[ContextPoint]:
    """Every context model of a model on every image of a folder, "none" first, or on so many of the images.

    Files are decoded in turn, context after context, ``rounds`` times: drifts of the machine's speed
    meet all of them alike.
    """
    found = load_model(model)
    if not isinstance(found, Model):
        raise ValueError(f"the model {model!r} is a published codec's, which has one context model")
    names = ["none", *found.contexts]
    files = spread(image_files(folder), images)
    sizes: dict[tuple[str, float], list[int]] = {}
    times: dict[tuple[str, float], list[float]] = {}
    done = 0
    for file in files:
        image = Image.fromarray(load_rgb(file))
        for quality in LIC.values:
            out = BytesIO()
            image.save(out, "LIC", quality=quality, model=model, context="none")
            coded = {name: codec.transcode(out.getvalue(), name) for name in names}
            for name, data in coded.items():
                sizes.setdefault((name, quality), []).append(len(data))
            for _ in range(rounds):
                for name, data in coded.items():
                    times.setdefault((name, quality), []).append(_decode_time(data))
            done += 1
            if on_step:
                on_step(done, len(files) * len(LIC.values))
    points = []
    for (name, quality), own in sizes.items():
        change = fmean(s / n for s, n in zip(own, sizes["none", quality], strict=True)) - 1
        points.append(ContextPoint(name, quality, 100 * change, median(times[name, quality])))
    return points


def text(points: Sequence[ContextPoint]) -> str:
    """A table: each context model's size and time against none, by quality and in the mean."""
    names = list(dict.fromkeys(p.context for p in points))
    qualities = sorted({p.quality for p in points})
    by_place = {(p.context, p.quality): p for p in points}
    lines = [f"{'bytes against none, %':<24}" + "".join(f"{q:>7g}" for q in qualities) + "   mean"]
    for name in names[1:]:
        row = [by_place[name, q].size for q in qualities]
        lines.append(f"{name:<24}" + "".join(f"{v:>+7.2f}" for v in [*row, fmean(row)]))
    lines.append(f"{'decode time, ms':<24}" + "".join(f"{q:>7g}" for q in qualities) + "   mean  ratio")
    base = fmean(by_place[names[0], q].decode for q in qualities)
    for name in names:
        row = [by_place[name, q].decode for q in qualities]
        cells = "".join(f"{1000 * v:>7.1f}" for v in [*row, fmean(row)])
        lines.append(f"{name:<24}{cells}{fmean(row) / base:>7.2f}")
    return "\n".join(lines)


def _decode_time(data: bytes) -> float:
    reader = container.Reader(BytesIO(data))
    reader.metadata()
    started = time.perf_counter()
    codec.decode(reader.header, next(reader.frames()))
    return time.perf_counter() - started

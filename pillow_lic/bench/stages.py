"""Where the time of an encode and a decode goes: a stopwatch around each stage, in the running program.

On one thread and in processor time, so that it does not matter what else the machine does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from statistics import median
from typing import Any

import torch
from PIL import Image, ImageOps

from pillow_lic.bench.codecs import LIC, decode
from pillow_lic.entropy.coder import SymbolDecoder, SymbolEncoder
from pillow_lic.entropy.context import ExactContext
from pillow_lic.entropy.exact import ExactHyperSynthesis
from pillow_lic.models.hyperprior import HyperAnalysis
from pillow_lic.models.transforms import Analysis, Synthesis

CONVOLUTIONS = "convolutions (analysis, synthesis)"
HYPER, CONTEXT = "exact path: hyper-synthesis", "exact path: context model"
CODER, REST = "range coder", "quantiser, container, Pillow"
STAGES = (CONVOLUTIONS, HYPER, CONTEXT, CODER, REST)

_PLACES: tuple[tuple[Any, str, str], ...] = (
    (Analysis, "forward", CONVOLUTIONS),
    (HyperAnalysis, "forward", CONVOLUTIONS),
    (Synthesis, "forward", CONVOLUTIONS),
    (ExactHyperSynthesis, "__call__", HYPER),
    (ExactContext, "encode", CONTEXT),
    (ExactContext, "decode", CONTEXT),
    *((kind, name, CODER) for kind in (SymbolEncoder, SymbolDecoder) for name in vars(kind) if name[0] != "_"),
)


@dataclass(frozen=True)
class Profile:
    """Median milliseconds of each stage, without what other stages inside it take, and their sum."""

    name: str
    stages: dict[str, float]
    whole: float


class Stopwatch:
    """Charges time to the innermost stage that is running."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._running = [REST]
        self._since = time.thread_time()

    def turn(self) -> None:
        """Charge the time since the last turn."""
        now = time.thread_time()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def wrapped(self, work: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The same function, its time charged to a stage."""

        @wraps(work)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.turn()
            self._running.append(stage)
            try:
                return work(*args, **kwargs)
            finally:
                self.turn()
                self._running.pop()

        return timed


@contextmanager
def watching() -> Iterator[Stopwatch]:
    """A stopwatch around every stage, of this process."""
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in _PLACES]
    watch = Stopwatch()
    try:
        for (owner, name, work), (_, _, stage) in zip(originals, _PLACES, strict=True):
            setattr(owner, name, watch.wrapped(work, stage))
        yield watch
        watch.turn()
    finally:
        for owner, name, work in originals:
            setattr(owner, name, work)


def profile(images: Sequence[Image.Image], quality: float = 4, rounds: int = 3) -> list[Profile]:
    """Encoding and decoding of some images, each several times; the first round, which loads weights, is left out."""
    found: dict[str, list[dict[str, float]]] = {"encode": [], "decode": []}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for image in images:
            data = LIC.encode(image, quality)
            decode(data)
            works: dict[str, Callable[[], object]] = {
                "encode": partial(LIC.encode, image, quality),
                "decode": partial(decode, data),
            }
            for name in [*works] * rounds:
                with watching() as watch:
                    works[name]()
                found[name].append(watch.seconds)
    finally:
        torch.set_num_threads(before)
    profiles = []
    for name, runs in found.items():
        stages = {stage: 1000 * median(run[stage] for run in runs) for stage in STAGES}
        profiles.append(Profile(name, stages, sum(stages.values())))
    return profiles


def text(profiles: Sequence[Profile]) -> str:
    """A table of stages: milliseconds and per cent."""
    lines = [f"{'stage':<36}" + "".join(f"{p.name + ', ms':>14}{'%':>7}" for p in profiles)]
    for stage in STAGES:
        cells = "".join(f"{p.stages[stage]:>14.1f}{100 * p.stages[stage] / p.whole:>7.1f}" for p in profiles)
        lines.append(f"{stage:<36}{cells}")
    lines.append(f"{'whole':<36}" + "".join(f"{p.whole:>14.1f}{'':>7}" for p in profiles))
    return "\n".join(lines)


def photographs(files: Sequence[Any], count: int) -> list[Image.Image]:
    """The first so many pictures at 768x512, the middle of each."""
    found = []
    for file in files[:count]:
        with Image.open(file) as image:
            found.append(fitted(image))
    return found


def fitted(image: Image.Image) -> Image.Image:
    """A picture at 768x512 (0.4 megapixels): scaled, and what is too long or high cut off."""
    return ImageOps.fit(image.convert("RGB"), (768, 512), Image.Resampling.LANCZOS)

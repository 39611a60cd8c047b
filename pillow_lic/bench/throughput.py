"""Many pictures: worker processes beside a plain loop, a fresh process's first picture, and CUDA's share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

import pillow_lic
from pillow_lic.bench.stages import fitted
from pillow_lic.pictures import image_files

LOOP = """
import sys
from pathlib import Path
from PIL import Image
import pillow_lic
source, target, suffix = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
for path in sorted(source.iterdir()):
    with Image.open(path) as image:
        image.save(target / (path.stem + suffix))
"""

FIRST = """
import json, sys, time
started = time.process_time()
import torch
imported = time.process_time()
from PIL import Image
import pillow_lic
with Image.open(sys.argv[1]) as image:
    image.load()
print(json.dumps([started, imported - started, time.process_time() - imported]))
"""


@dataclass(frozen=True)
class Run:
    """A command's wall time and the processor time of all its processes in seconds, and the largest memory in
    bytes that they had together.
    """

    seconds: float
    processor: float
    memory: int


def run(argv: Sequence[Any]) -> Run:
    """Run a Python command; shared pages count once (proportional set size)."""
    import resource

    import psutil

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    started, before = time.perf_counter(), spent()
    process = subprocess.Popen([sys.executable, *map(str, argv)], stdout=subprocess.DEVNULL, env=_settings())
    largest = 0
    while process.poll() is None:
        try:
            top = psutil.Process(process.pid)
            total = sum(p.memory_full_info().pss for p in [top, *top.children(recursive=True)])
            largest = max(largest, total)
        except psutil.Error:
            pass
        with suppress(subprocess.TimeoutExpired):  # counting pages takes milliseconds a process
            process.wait(timeout=0.5)
    if process.returncode:
        raise OSError(f"{argv} failed")
    return Run(time.perf_counter() - started, spent() - before, largest)


def figures_of(script: str, path: Path) -> list[float]:
    """What a script that gets a path prints, as JSON, in a process of its own; ``OSError`` if it fails."""
    argv = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, env=_settings(), check=False)
    if done.returncode:
        raise OSError(f"a measuring process failed ({done.returncode}): {done.stderr.strip()[-500:]}")
    found: list[float] = json.loads(done.stdout)
    return found


def _settings() -> dict[str, str]:
    """The environment of processes that are measured: quiet, and without a GPU, which has figures of its own."""
    return os.environ | {"TQDM_DISABLE": "1", "PILLOW_LIC_DEVICE": "cpu"}


def make_photographs(folder: Path, target: Path, count: int) -> None:
    """JPEGs of 768x512 from a folder's pictures, mirrored where there are too few."""
    files = image_files(folder)
    for n in range(count):
        with Image.open(files[n % len(files)]) as image:
            picture = fitted(image)
        if n // len(files) % 2:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture.save(target / f"{n:04}.jpg", quality=92)


def compare(folder: Path, count: int, jobs: int, on_step: Callable[[int, int], None]) -> str:
    """``lic convert --jobs`` and a plain loop over ``Image.open`` and ``save``, from process start to the last file."""
    lines = [f"{count} photographs of 768x512, from process start to the last file"]
    lines.append(
        f"{'':<24}{'seconds':>9}{'processor s':>13}{'images/s':>10}{'MP/s':>8}{'peak memory, MiB':>18}{'ratio':>8}"
    )
    with tempfile.TemporaryDirectory() as name:
        places = {part: Path(name, part) for part in ("photos", "lic", "loop", "back", "loop-back")}
        for place in places.values():
            place.mkdir()
        make_photographs(folder, places["photos"], count)
        convert = ["-m", "pillow_lic", "convert", "--jobs", jobs]
        runs = {
            "encode": (["-c", LOOP, places["photos"], places["loop"], ".lic"],
                       [*convert, places["photos"], places["lic"]]),
            "decode": (["-c", LOOP, places["loop"], places["loop-back"], ".bmp"],
                       [*convert, "--to", "bmp", places["lic"], places["back"]]),
        }  # fmt: skip
        for n, (what, (plain, pool)) in enumerate(runs.items()):
            found = []
            for m, argv in enumerate((plain, pool)):
                found.append(run(argv))
                on_step(2 * n + m + 1, 4)
            for label, one in zip((f"{what}, plain loop", f"{what}, --jobs {jobs}"), found, strict=True):
                rate = count / one.seconds
                lines.append(f"{label:<24}{one.seconds:>9.1f}{one.processor:>13.1f}{rate:>10.2f}{rate * 0.393216:>8.2f}"
                             f"{one.memory / 2**20:>18.0f}{found[0].seconds / one.seconds:>8.2f}")  # fmt: skip
    return "\n".join(lines)


def first_picture(folder: Path, rounds: int = 5) -> str:
    """Processor time of a process that opens one picture: Python, ``import torch``, and the rest."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "x.lic")
        with Image.open(image_files(folder)[0]) as image:
            fitted(image).save(path)
        runs = [figures_of(FIRST, path) for _ in range(rounds + 1)]
    python, torch, ours = (1000 * median(part) for part in zip(*runs[1:], strict=True))
    whole = python + torch + ours
    return (
        f"process start to the pixels of one 768x512 file: {whole:.0f} ms of processor time\n"
        f"  Python {python:.0f} ms, import torch {torch:.0f} ms ({100 * torch / whole:.0f} %), "
        f"import pillow_lic, weights and decode {ours:.0f} ms"
    )


def on_cuda(folder: Path, count: int = 64) -> str:
    """Pictures a second on a CUDA device, one by one and in batches, with the share of time it is busy."""
    import torch

    pictures = [np.asarray(fitted(Image.open(f))) for f in image_files(folder)[:8]]
    pictures *= max(1, count // len(pictures))
    count = len(pictures)
    files = pillow_lic.encode_batch(pictures, device="cuda")
    works: dict[str, Callable[[], object]] = {
        "encode, batch 1": lambda: [pillow_lic.encode_batch([p], device="cuda") for p in pictures],
        "encode, batch 32": lambda: pillow_lic.encode_batch(pictures, device="cuda"),
        "decode, batch 1": lambda: [pillow_lic.decode_batch([f], device="cuda") for f in files],
        "decode, batch 32": lambda: pillow_lic.decode_batch(files, device="cuda"),
    }
    lines = [f"{torch.cuda.get_device_name()}, {count} pictures of 768x512"]
    lines.append(f"{'':<28}{'images/s':>10}{'MP/s':>8}{'device busy, %':>16}")
    for name, work in works.items():
        work()
        torch.cuda.synchronize()
        watch = _Busy()
        started = time.perf_counter()
        with watch:
            work()
            torch.cuda.synchronize()
        rate = count / (time.perf_counter() - started)
        lines.append(f"{name:<28}{rate:>10.1f}{rate * 0.393216:>8.1f}{watch.share:>16.0f}")
    return "\n".join(lines)


class _Busy:
    """Samples how much of the time a kernel runs on the device, in per cent, as its driver tells."""

    def __enter__(self) -> None:
        self._found: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        import torch

        with suppress(ModuleNotFoundError):  # nvidia-ml-py, without which the share is not a number
            while not self._over.wait(0.05):
                self._found.append(torch.cuda.utilization())

    @property
    def share(self) -> float:
        return sum(self._found) / len(self._found) if self._found else float("nan")

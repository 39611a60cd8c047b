"""Threads and processes get the same bytes and pixels, and nothing global is changed for those who use torch too."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import coded, load, pixels_of, setting
from PIL import Image, ImageFile

import pillow_lic
from pillow_lic.models import loading

HERE = Path(__file__).parent
MODEL = str(HERE / "golden" / "lattice.safetensors")
CONTEXTS = ("none", "checkerboard", "channel", "staircase", "autoregressive", "volume")


def work(number: int) -> str:
    """Code and decode a part of a picture in one of several ways; a hash of the bytes and the pixels."""
    part = load("coffee").crop((10 * number, 5 * number, 10 * number + 90, 5 * number + 70))
    context = CONTEXTS[number % len(CONTEXTS)]
    data = coded(part, model=MODEL, context=context, quality=1 + number % 8, tile=64 * (number % 2))
    return hashlib.sha256(data + pixels_of(data).tobytes()).hexdigest()


def in_process(numbers: list[int], results: object) -> None:
    results.put([work(n) for n in numbers])  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _golden_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(HERE / "golden"))


@pytest.fixture(scope="module")
def expected() -> list[str]:
    return [work(n) for n in range(10)]


def test_many_threads_get_the_same(expected: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, [n % 10 for n in range(60)])) == [expected[n % 10] for n in range(60)]


def test_weights_are_read_once_and_networks_made_once(expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads come first."""
    read, made = [], []
    reader, maker = loading._read, loading.ExactContext
    monkeypatch.setattr(loading, "_read", lambda *a: read.append(a) or reader(*a))
    monkeypatch.setattr(loading, "ExactContext", lambda *a: made.append(a) or maker(*a))
    monkeypatch.setattr(loading, "_loaded", {})
    start = threading.Barrier(8)

    def at_once(number: int) -> str:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(at_once, [3] * 8)) == [expected[3]] * 8
    assert (len(read), len(made)) == (1, 1)


def test_threads_may_share_an_image(photo: Image.Image) -> None:
    data = coded(photo, model=MODEL, tile=64)
    image = Image.open(BytesIO(data))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: np.asarray(image).tobytes(), range(16)))
    assert set(found) == {pixels_of(data).tobytes()}


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_processes_get_the_same(method: str, expected: list[str]) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=in_process, args=([0, 1, 2, 3], results))
    process.start()
    assert results.get(timeout=120) == expected[:4]
    process.join(60)
    assert process.exitcode == 0


FORK = """
import os, signal, sys
sys.path.insert(0, "tests")
import torch
torch.set_num_threads(2)
import test_concurrency as here
expected = here.work(3)
torch.ones(3000, 3000).exp()  # on two threads
child = os.fork()
if child == 0:
    here.loading._loaded.clear()
    signal.alarm(90)
    os._exit(0 if here.work(3) == expected else 9)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


FORK_WHILE_READING = """
import os, threading, time
from pillow_lic.models import loading
reading = threading.Event()
def read():
    with loading._lock:
        reading.set()
        time.sleep(0.3)
threading.Thread(target=read).start()
reading.wait()
child = os.fork()
if not child:
    os._exit(not loading._lock.acquire(timeout=5))
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_another_thread_reads_a_model_goes_on() -> None:
    """Its lock would never be released in the child, which has no such thread."""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", FORK_WHILE_READING], timeout=60).returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_after_work_on_several_threads_goes_on() -> None:
    """OpenMP's threads are not there in a forked child, which must not wait for them."""
    env = os.environ | {"PYTHONPATH": str(HERE.parent), "PILLOW_LIC_MODELS": str(HERE / "golden")}
    for name in ("PYTEST_XDIST_WORKER", "OMP_NUM_THREADS"):
        env.pop(name, None)
    done = subprocess.run([sys.executable, "-c", FORK], cwd=HERE.parent, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


# -- global state --------------------------------------------------------------------------


def state() -> dict[str, object]:
    """All that a user of torch, NumPy and Pillow may have set."""
    return {
        "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "onednn": torch.backends.mkldnn.enabled,
        "flush denormal": float(torch.tensor([1e-310], dtype=torch.float64, device="cpu") * 0.5),
        "torch random": torch.get_rng_state().numpy().tobytes(),
        "NumPy random": np.random.get_state()[1].tobytes(),  # type: ignore[union-attr, index]
        "random": random.getstate(),
        "NumPy errors": np.geterr(),
        "warnings": list(warnings.filters),
        "pixels": Image.MAX_IMAGE_PIXELS,
        "truncated": ImageFile.LOAD_TRUNCATED_IMAGES,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


def everything(picture: Image.Image) -> None:
    """What there is to do with files."""
    data = coded(picture, model=MODEL, effort=1, tile=64)
    coded(picture, model=MODEL, effort=4, threads=1)
    coded(picture, model=MODEL, target_bpp=1.5)
    pillow_lic.transcode(data, "auto")
    pixels_of(data)
    image = Image.open(BytesIO(data))
    image.crop((0, 0, 20, 20))
    image.thumbnail((20, 20))
    with pytest.raises(OSError, match="damaged"):
        pixels_of(data[:-9] + b"?" + data[-8:])


def changed(action: Callable[[], object]) -> list[str]:
    """What of the state an action changes."""
    before = state()
    action()
    after = state()
    return [name for name in before if before[name] != after[name]]


def test_no_global_state_is_changed(small: Image.Image) -> None:
    everything(small)  # what torch's own modules set when they are imported is theirs
    assert changed(lambda: everything(small)) == []


def test_planted_changes_of_global_state_are_found() -> None:
    plants: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("dtype", lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
        ("torch random", lambda: torch.rand(1), lambda: None),
        ("grad", lambda: torch.set_grad_enabled(False), lambda: torch.set_grad_enabled(True)),
        ("device", lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
    ]
    for name, plant, undo in plants:
        try:
            assert changed(plant) == [name]
        finally:
            undo()


CALLERS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "default device": lambda: torch.device("meta"),
    "default dtype": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "short dtype": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "anomalies": torch.autograd.detect_anomaly,
    "deterministic": lambda: setting(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "precision": lambda: setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", CALLERS)
def test_what_a_caller_has_set_changes_nothing(name: str, expected: list[str]) -> None:
    with CALLERS[name]():
        assert [work(n) for n in (2, 3, 5)] == [*expected[2:4], expected[5]]


def test_a_planted_nondeterminism_is_found(expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One symbol that depends on chance is enough."""
    from pillow_lic import symbols

    quantise = symbols.with_residual

    def by_chance(model: object, tile: object, residual: torch.Tensor) -> object:
        return quantise(model, tile, residual + torch.rand(()).mul(0.5))

    monkeypatch.setattr(symbols, "with_residual", by_chance)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) != expected[:4]


def test_overlapping_callers_leave_threads_that_start_later_as_they_would_be() -> None:
    """What one thread sets is what new threads begin with."""
    data = coded(load("coffee").crop((0, 0, 90, 70)), model=MODEL)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for work in (
            lambda: pillow_lic.decode_batch([data] * 4),
            lambda: pillow_lic.open(BytesIO(data), threads=1).load(),
        ):
            with ThreadPoolExecutor(4) as pool:
                for done in [pool.submit(work) for _ in range(12)]:
                    done.result()
            found: list[int] = []
            fresh = threading.Thread(target=lambda into=found: into.append(torch.get_num_threads()))
            fresh.start()
            fresh.join()
            assert (torch.get_num_threads(), found) == (3, [3])
    finally:
        torch.set_num_threads(before)

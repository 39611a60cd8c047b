from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

import pillow_lic
from pillow_lic import devices, options
from pillow_lic.bench import metrics

# Nothing that this machine's owner has set or installed: models of theirs would come before those that ship.
for name in ("PILLOW_LIC_DEVICE", "PILLOW_LIC_PRECISION", "PILLOW_LIC_MODELS"):
    os.environ.pop(name, None)
os.environ["XDG_DATA_HOME"] = tempfile.gettempdir() + "/nobodys"

# The same examples each time: what decides about a change is not to depend on chance, which fuzz.run is for.
settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")
pillow_lic.register_lic_opener()

IMAGES = Path(__file__).parent / "images"
DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

# Two workers of one thread each are faster than two of two on two cores.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def load(name: str) -> Image.Image:
    with Image.open(IMAGES / f"{name}.png") as image:
        image.load()
        return image


def coded(image: Image.Image, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, "LIC", **options)
    return out.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    with Image.open(BytesIO(data)) as image:
        return np.asarray(image)


def psnr(a: object, b: object) -> float:
    return metrics.psnr(np.asarray(a), np.asarray(b))


@contextmanager
def setting(get: Callable[[], Any], put: Callable[[Any], object], value: object) -> Iterator[None]:
    """A global setting has another value meanwhile."""
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def threads(count: int) -> AbstractContextManager[None]:
    return setting(torch.get_num_threads, torch.set_num_threads, count)


@pytest.fixture(autouse=True)
def _defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sets for the process is not for the next one."""
    monkeypatch.setattr(options, "defaults", options.EncoderOptions())


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On every machine the same: what a search finds in a single picture differs by a few tenths of a per cent."""
    monkeypatch.setenv("PILLOW_LIC_PRECISION", "float32")
    devices.block_dtype.cache_clear()
    yield
    monkeypatch.undo()
    devices.block_dtype.cache_clear()


@pytest.fixture
def photo() -> Image.Image:
    return load("astronaut")


@pytest.fixture
def grey() -> Image.Image:
    return load("camera")


@pytest.fixture
def small(photo: Image.Image) -> Image.Image:
    return photo.crop((80, 40, 140, 90))


@pytest.fixture
def data_folder() -> Path:
    if not DATA.is_dir():
        pytest.skip("needs the photographs in ../shared/data")
    return DATA


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model with every context and the lattice tables."""
    from test_context import tiny_model

    from pillow_lic.training.export import write_model
    from pillow_lic.training.probabilities import make_tables

    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    write_model(tiny_model(), path, make_tables())
    return str(path)


@pytest.fixture
def part(photo: Image.Image) -> Image.Image:
    return photo.crop((40, 20, 137, 132))

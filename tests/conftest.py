from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

import pillow_lic
from pillow_lic.bench import metrics

settings.register_profile("default", deadline=None)
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

"""Files of format version 1 decode for ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pillow_lic
from pillow_lic.models.context.schedule import CONTEXTS

GOLDEN = Path(__file__).parent / "golden"
FILES = (
    "colour",
    "grey-tiled",
    "noise",
    "context-none",
    "lattice-none",
    "diamond-none",
    "bw16-none",
    "kind-alpha",
    "kind-roi",
    "kind-animation",
    "kind-progressive",
    "published",
)


@pytest.fixture(autouse=True)
def _golden_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(GOLDEN))


@pytest.mark.parametrize("name", FILES)
def test_pixels(name: str) -> None:
    """The checksum in the file proves the symbols and means; the pixels may round differently."""
    with Image.open(GOLDEN / f"{name}.lic") as image, Image.open(GOLDEN / f"{name}.png") as expected:
        image.seek(image.n_frames - 1)
        assert (image.size, image.mode) == (expected.size, expected.mode)
        difference = np.abs(np.asarray(image, int) - np.asarray(expected, int))
    assert difference.max() <= 2
    assert difference.mean() < 0.1


def test_metadata() -> None:
    with Image.open(GOLDEN / "colour.lic") as image:
        assert image.info["quality"] == pytest.approx(3.3, abs=1 / 512)
        assert image.info["xmp"] == b"<x/>" * 40
        assert image.getexif()[0x013B] == "somebody"


@pytest.mark.parametrize("quantizer", ["context", "lattice", "diamond", "bw16"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_every_context_holds_the_same_picture(context: str, quantizer: str) -> None:
    data = (GOLDEN / f"{quantizer}-{context}.lic").read_bytes()
    plain = (GOLDEN / f"{quantizer}-none.lic").read_bytes()
    assert pillow_lic.transcode(data, "none") == plain
    assert pillow_lic.transcode(plain, context) == data


def test_every_kind_is_coded_again_to_the_same_bytes() -> None:
    for kind in ("alpha", "roi", "animation"):
        data = (GOLDEN / f"kind-{kind}.lic").read_bytes()
        with Image.open(GOLDEN / f"kind-{kind}.lic") as image:
            context = image.info["context"]
        assert pillow_lic.transcode(pillow_lic.transcode(data, "none"), context) == data


def test_the_animation_tells_its_times() -> None:
    with Image.open(GOLDEN / "kind-animation.lic") as image:
        assert (image.n_frames, image.info["loop"], image.info["duration"]) == (2, 3, 40)
        image.seek(1)
        assert image.info["duration"] == 70


@pytest.mark.parametrize("name", FILES[:3])
def test_encoding_again_gives_a_file_that_decodes_alike(name: str, tmp_path: Path) -> None:
    model = str(GOLDEN / "golden.safetensors")
    with Image.open(GOLDEN / f"{name}.lic") as image:
        image.save(tmp_path / "again.lic", quality=8, model=model)
        with Image.open(tmp_path / "again.lic") as again:
            assert np.abs(np.asarray(again, int) - np.asarray(image, int)).mean() < 8

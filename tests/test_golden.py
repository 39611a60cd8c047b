"""Files of format version 1 decode for ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pillow_lic
from pillow_lic.container import Reader
from pillow_lic.header import CONTEXTS, QUANTIZERS

GOLDEN = Path(__file__).parent / "golden"
FILES = (
    "colour",
    "grey-tiled",
    "noise",
    "context-none",
    "lattice-none",
    "diamond-none",
    "bw16-none",
    "h24-none",
    "kind-alpha",
    "kind-roi",
    "kind-animation",
    "kind-progressive",
    "kind-grey",
    "kind-everything",
    "scalar-none",
    *(f"roi-{quantizer}" for quantizer in QUANTIZERS),
    *(f"scans-{quantizer}-none" for quantizer in QUANTIZERS),
    "divided-none",
    "scans-divided-none",
    "hyper-none",
    "scans-hyper-none",
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
    assert difference.mean() < (0.25 if name == "published" else 0.1)  # published networks compute more in bfloat16


def test_metadata() -> None:
    with Image.open(GOLDEN / "colour.lic") as image:
        assert image.info["quality"] == pytest.approx(3.3, abs=1 / 512)
        assert image.info["xmp"] == b"<x/>" * 40
        assert image.getexif()[0x013B] == "somebody"


KINDS = ("context", "scalar", "lattice", "diamond", "bw16", "h24", *(f"scans-{quantizer}" for quantizer in QUANTIZERS))
DIVIDED = ("divided", "scans-divided", "hyper", "scans-hyper")
"""Files whose context models have interleaved groups of channels, or beside which z has one of its own."""


@pytest.mark.parametrize(
    ("name", "context"),  # some models have none over the volume
    [(n, c) for n in (*KINDS, *DIVIDED) for c in CONTEXTS[1:] if c != "volume" or n not in ("context", *DIVIDED)],
)
def test_every_context_holds_the_same_picture(name: str, context: str) -> None:
    data = (GOLDEN / f"{name}-{context}.lic").read_bytes()
    plain = (GOLDEN / f"{name}-none.lic").read_bytes()
    assert pillow_lic.transcode(data, "none") == plain
    assert pillow_lic.transcode(plain, context) == data


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.lic")), ids=lambda path: path.stem)
def test_every_file_is_coded_again_to_the_same_bytes(path: Path) -> None:
    data = path.read_bytes()
    with path.open("rb") as file:
        context = Reader(file).header.context
    assert pillow_lic.transcode(data, context) == data


def test_the_matrix_is_whole() -> None:
    """Every context with every quantiser, in one piece and in scans; every mode; levels of quality; frames."""
    found = []
    for path in GOLDEN.glob("*.lic"):
        with path.open("rb") as file:
            found.append(Reader(file).header)
    ways = {(h.context, h.quantizer, h.progressive) for h in found}
    assert ways >= {(c, q, scans) for c in CONTEXTS for q in QUANTIZERS for scans in (False, True)}
    assert {h.mode for h in found} == {"L", "RGB", "LA", "RGBA"}
    assert {h.quantizer for h in found if h.adaptive} == set(QUANTIZERS)
    assert any(h.frames > 1 and h.adaptive and h.progressive and h.tile and h.has_alpha for h in found)


def test_everything_at_once() -> None:
    with Image.open(GOLDEN / "kind-everything.lic") as image:
        shown = [(image.seek(n), image.info["duration"])[1] for n in range(image.n_frames)]
        assert (shown, image.info["loop"], image.mode) == ([40, 0, 2**32 - 1], 3, "RGBA")
        assert (image.info["comment"], image.info["icc_profile"]) == (b"so", bytes(range(64)))
        assert image.info["dpi"] == pytest.approx((300, 72))
        assert image.getexif()[0x0112] == 6


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

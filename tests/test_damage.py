"""Damaged files end in an error, never in a wrong picture."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from unittest.mock import ANY

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import coded, pixels_of
from fuzz import damage, seeds
from PIL import Image, UnidentifiedImageError

import pillow_lic
from pillow_lic import container, symbols
from pillow_lic.container import Frame
from pillow_lic.header import Header


def outcome(data: bytes) -> str:
    """ "error", or "picture" if something was decoded."""
    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
    except (OSError, UnidentifiedImageError):
        return "error"
    return "picture"


@pytest.fixture
def tiny(small: Image.Image) -> bytes:
    return coded(small.resize((24, 20)), quality=2, exif=b"Exif\0\0" + b"e" * 20)


def test_every_flipped_byte(tiny: bytes) -> None:
    for position in range(len(tiny)):
        damaged = bytearray(tiny)
        damaged[position] ^= 0xFF
        assert outcome(bytes(damaged)) == "error", position


def test_every_cut(tiny: bytes) -> None:
    for length in range(len(tiny)):
        assert outcome(tiny[:length]) == "error", length


KINDS = ("none-scalar", "staircase-e8", "autoregressive-diamond", "grey", "alpha", "alpha-even", "tiled", "metadata")


@pytest.mark.parametrize("name", KINDS)
def test_every_flip_and_cut_of_every_kind_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m fuzz.damage`` does this with all kinds (docs/security.md)."""
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(seeds.GOLDEN))
    assert {what for _, what in damage.count(name, lenient=False)} == {"error"}


@pytest.mark.parametrize(
    ("name", "every"), [("none-e8", 3), ("tiled", 37), ("alpha", 5), ("everything", 199), ("progressive", 83)]
)
def test_with_load_truncated_images_a_part_is_right_and_said_to_be_one(
    name: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(seeds.GOLDEN))
    found = damage.count(name, lenient=True, every=every)
    assert {what for _, what in found} <= {"error", "right", "part"}
    assert name not in ("tiled", "everything", "progressive") or any(what == "part" for _, what in found)


def test_a_planted_silent_corruption_is_a_wrong_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(seeds.GOLDEN))
    seeds.seeds()  # before checksums mean nothing
    monkeypatch.setattr(container, "_checksum", lambda kind, payload: ANY)
    monkeypatch.setattr(symbols, "_checksums", lambda tile: [ANY] * tile.tiles)
    assert any(what == "WRONG" for _, what in damage.count("none-scalar", lenient=False, every=3))


def test_a_wrong_mean_is_found(small: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means decide no probability, but the picture: the checksum covers them too."""
    data = coded(small)
    priors = symbols.priors_of
    monkeypatch.setattr(symbols, "priors_of", lambda *a: replace(priors(*a), mean=priors(*a).mean + 1))
    with Image.open(BytesIO(data)) as image, pytest.raises(OSError, match="fail their checksum"):
        image.load()


def with_payload(data: bytes, change: object) -> bytes:
    """The file with its coded tile changed and every outer checksum made right again."""
    reader = container.Reader(BytesIO(data))
    reader.metadata()
    (tile,) = next(reader.frames()).tiles
    return container.write(reader.header, {}, [Frame([change(tile)])])  # type: ignore[operator]


def test_wrong_symbols_behind_right_checksums_are_found(small: Image.Image) -> None:
    data = coded(small, quality=3)
    expected = pixels_of(data)
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(60):

        def change(tile: bytes) -> bytes:
            damaged = bytearray(tile)
            damaged[4 + int(rng.integers(len(tile) - 4))] ^= 1 << int(rng.integers(8))
            return bytes(damaged)

        with Image.open(BytesIO(with_payload(data, change))) as image:
            try:
                image.load()
            except OSError as error:
                assert "damaged LIC file" in str(error)
                refused += 1
            else:
                # The range coder's last bits may mean nothing: then the symbols are the same.
                assert np.array_equal(image, expected)
    assert refused > 50


@pytest.mark.parametrize("tile", [b"", b"abc", b"abcd", b"\xff" * 400, b"\0" * 4000])
def test_tiles_of_garbage(small: Image.Image, tile: bytes) -> None:
    data = with_payload(coded(small), lambda _: tile)
    with Image.open(BytesIO(data)) as image, pytest.raises(OSError, match="damaged LIC file"):
        image.load()


def test_a_planted_silent_corruption_is_found_by_the_checksum(small: Image.Image) -> None:
    """Swap the stored checksum: symbols that decode without complaint are still refused."""
    data = coded(small)
    changed = with_payload(data, lambda tile: zlib.crc32(tile).to_bytes(4, "little") + tile[4:])
    with Image.open(BytesIO(changed)) as image, pytest.raises(OSError, match="fail their checksum"):
        image.load()


def test_bytes_after_the_last_frame_are_ignored(small: Image.Image) -> None:
    data = coded(small)
    assert np.array_equal(pixels_of(data + b"anything"), pixels_of(data))


def test_forty_bytes_cannot_claim_a_gigapixel() -> None:
    header = Header(2**24, 2**24, "RGB", b"12345678", 0, tile=512)
    data = container.write(header, {}, [Frame([b""])])
    assert len(data) < 60
    with pytest.raises(Image.DecompressionBombError):
        Image.open(BytesIO(data))
    with pytest.raises(Image.DecompressionBombError):
        iio.imread(data, extension=".lic")


def test_every_way_in_refuses_bombs_and_lets_go_of_the_file(
    small: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.lic"
    small.save(path, xmp=b"x" * 5000)
    data = bytearray(path.read_bytes())
    data[data.index(b"xmpm") + 8] ^= 1  # a limit is a limit whatever comes after the header
    path.write_bytes(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    ways: tuple[Callable[[Path], object], ...] = (
        Image.open,
        pillow_lic.open,
        iio.imread,
        iio.improps,
        pillow_lic.decode_tensor,
        lambda source: pillow_lic.decode_batch([source]),
        lambda source: pillow_lic.transcode(source.read_bytes(), "none"),
    )
    for way in ways:
        with pytest.raises(Image.DecompressionBombError):
            way(path)
    gc.collect()  # files left open would warn, and warnings are errors here

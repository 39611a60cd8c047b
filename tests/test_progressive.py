from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
import pytest
from conftest import coded, pixels_of, psnr
from PIL import Image, ImageFile

import pillow_lic
from pillow_lic import container, scans
from pillow_lic.container import Frame, Scans
from pillow_lic.models.loading import Model
from pillow_lic.symbols import CodedTile

pytestmark = pytest.mark.filterwarnings("ignore:damaged LIC file. less sharp")


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)


def scans_of(data: bytes) -> list[Scans]:
    reader = container.Reader(BytesIO(data))
    reader.metadata()
    tiles = [tile for tile in reader.frame(0).tiles if isinstance(tile, Scans)]
    assert tiles
    return tiles


def ends_of(data: bytes) -> list[int]:
    """How many bytes of a file without anything behind its frame hold each number of scans of all tiles."""
    sizes = [sum(len(tile.parts[n]) for tile in scans_of(data)) for n in range(scans_of(data)[0].count)]
    start = len(data) - 4 - sum(sizes)
    return [start + sum(sizes[: n + 1]) for n in range(len(sizes))]


@pytest.mark.parametrize("quantizer", ["e8", "h24", "scalar", "diamond"])
@pytest.mark.parametrize("context", ["none", "staircase", "channel", "checkerboard"])
def test_a_whole_file_is_the_same_picture(small: Image.Image, context: str, quantizer: str) -> None:
    options = {"context": context, "quantizer": quantizer, "quality": 5}
    data = coded(small, progressive=True, **options)
    with Image.open(BytesIO(data)) as image:
        assert image.info["progressive"]
        assert np.array_equal(np.asarray(image), pixels_of(coded(small, **options)))
    assert container.Reader(BytesIO(data)).header.progressive


@pytest.mark.parametrize("quantizer", ["e8", "h24", "diamond"])
def test_bands_that_another_encoder_chose(small: Image.Image, quantizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def bands(model: Model, tile: CodedTile, count: int) -> list[int]:
        return [*(40 - 6 * n for n in range(count - 1)), model.tables.skip]

    with monkeypatch.context() as other:
        other.setattr(scans, "_lows", bands)
        data = coded(small, progressive=True, quantizer=quantizer, quality=6)
    again = pillow_lic.transcode(data, "channel")
    assert scans_of(again)[0].parts[0][4] != scans_of(data)[0].parts[0][4]
    assert np.array_equal(pixels_of(again), pixels_of(data))
    assert np.array_equal(pixels_of(data), pixels_of(coded(small, quantizer=quantizer, quality=6)))


@pytest.mark.parametrize("tile", [0, 128])
def test_every_prefix_past_the_first_scan_opens(photo: Image.Image, lenient: None, tile: int) -> None:
    data = coded(photo, quality=8, progressive=True, tile=tile)
    ends = ends_of(data)
    assert len(ends) >= (2 if tile else 3)
    known = [psnr(photo, pixels_of(data[:end])) for end in ends]
    assert known == sorted(known)
    assert known[0] > 18
    for end, quality in zip(ends, known, strict=True):
        assert psnr(photo, pixels_of(data[: end + 3])) == pytest.approx(quality, abs=1e-9 if not tile else 1)
    assert np.array_equal(pixels_of(data[: ends[-1]]), pixels_of(data))
    for end in (ends[0] - 1, len(data) - 5 - sum(len(t) for t in scans_of(data)) + 1):
        with Image.open(BytesIO(data[:end])) as image, pytest.raises(OSError, match="truncated LIC file"):
            image.load()


def test_cut_files_are_errors_unless_they_are_asked_for(photo: Image.Image) -> None:
    data = coded(photo, quality=6, progressive=True)
    with Image.open(BytesIO(data[: ends_of(data)[1]])) as image, pytest.raises(OSError, match="truncated"):
        image.load()


@pytest.mark.parametrize("quality", [4, 8])
def test_scans_cost_little(photo: Image.Image, quality: int) -> None:
    assert len(coded(photo, quality=quality, progressive=True)) <= 1.012 * len(coded(photo, quality=quality))


def test_damage_in_a_later_scan_leaves_those_before_it(photo: Image.Image, lenient: None) -> None:
    data = coded(photo, quality=6, progressive=True)
    ends = ends_of(data)
    broken = bytearray(data)
    broken[ends[0] + 40] ^= 16
    assert np.array_equal(pixels_of(bytes(broken)), pixels_of(data[: ends[0]]))
    broken = bytearray(data)
    broken[ends[0] - 40] ^= 16
    with Image.open(BytesIO(bytes(broken))) as image, pytest.raises(OSError, match="damaged LIC file"):
        image.load()


def test_damaged_scans_never_become_a_picture(small: Image.Image) -> None:
    data = coded(small, quality=6, progressive=True)
    (tile,) = scans_of(data)
    header = container.Reader(BytesIO(data)).header
    rng = np.random.default_rng(3)
    for _ in range(25):
        parts = [bytearray(part) for part in tile.parts]
        part = parts[int(rng.integers(len(parts)))]
        part[int(rng.integers(len(part)))] ^= 1 << int(rng.integers(8))
        damaged = container.write(header, {}, [Frame([Scans(tile.count, [bytes(p) for p in parts])])])
        with Image.open(BytesIO(damaged)) as image, pytest.raises(OSError, match="damaged LIC file"):
            image.load()
    for parts in ([b"", *tile.parts[1:]], [tile.parts[0][:4], *tile.parts[1:]], [*tile.parts[:-1], b"123"]):
        damaged = container.write(header, {}, [Frame([Scans(tile.count, parts)])])
        with Image.open(BytesIO(damaged)) as image, pytest.raises(OSError, match="damaged LIC file"):
            image.load()
    for count in (0, 1, 9):
        damaged = container.write(header, {}, [Frame([Scans(count, tile.parts)])])
        with Image.open(BytesIO(damaged)) as image, pytest.raises(OSError, match="impossible number of scans"):
            image.load()


def test_everything_else_still_works(photo: Image.Image) -> None:
    data = coded(photo.convert("RGBA"), progressive=True, tile=64, adaptive=True, effort=1, xmp=b"<x/>")
    expected = pixels_of(data)
    there = pillow_lic.transcode(data, "channel")
    assert np.array_equal(pixels_of(there), expected)
    assert pillow_lic.transcode(there, "staircase") == data
    with Image.open(BytesIO(data)) as image:
        assert np.array_equal(np.asarray(image.crop((10, 70, 90, 130))), expected[70:130, 10:90])
    frames = BytesIO()
    photo.save(frames, "LIC", save_all=True, append_images=[photo], progressive=True)
    with Image.open(frames) as film:
        film.seek(1)
        assert np.array_equal(np.asarray(film), pixels_of(coded(photo)))


def test_progressive_is_yes_or_no(small: Image.Image) -> None:
    with pytest.raises(TypeError, match="progressive must be True or False, not 3"):
        coded(small, progressive=3)
    with pytest.raises(TypeError, match="exact must be True or False, not 'no'"):
        coded(small, exact="no")


def test_what_is_missing_is_said(photo: Image.Image, lenient: None) -> None:
    data = coded(photo, quality=6, progressive=True)
    ends = ends_of(data)
    with pytest.warns(UserWarning, match=f"less sharp, from {len(ends) - 1} of {len(ends)} scans"):
        pixels_of(data[: ends[-1] - 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels_of(data)

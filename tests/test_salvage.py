"""``ImageFile.LOAD_TRUNCATED_IMAGES``: what is intact is shown, the rest is grey, and a warning says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from unittest.mock import ANY

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import coded, load
from PIL import Image, ImageFile

import pillow_lic
from pillow_lic import container
from pillow_lic.codec import salvage
from pillow_lic.container import Frame
from pillow_lic.header import Header

GOLDEN = Path(__file__).parent / "golden"
MODEL = str(GOLDEN / "lattice.safetensors")


@pytest.fixture(autouse=True)
def _lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)


@pytest.fixture
def tiled(photo: Image.Image) -> bytes:
    """Four by three tiles."""
    return coded(photo, model=MODEL, tile=64, context="none", quality=3)


def parts(data: bytes) -> tuple[Header, list[bytes], int]:
    """Header, tiles, and where in the file the first tile begins."""
    reader = container.Reader(BytesIO(data))
    reader.metadata()
    (frame,) = reader.frames()
    return reader.header, frame.tiles, len(data) - 4 - sum(map(len, frame.tiles))


def opened(data: bytes) -> tuple[np.ndarray, list[str]]:
    """Pixels and warnings."""
    with warnings.catch_warnings(record=True) as caught, Image.open(BytesIO(data)) as image:
        warnings.simplefilter("always")
        image.load()
    return np.array(image), [str(w.message) for w in caught]


def lost(pixels: np.ndarray) -> list[int]:
    """The tiles that are grey all over."""
    return [
        n for n in range(12)
        if (pixels[64 * (n // 4) : 64 * (n // 4 + 1), 64 * (n % 4) : 64 * (n % 4 + 1)] == 128).all()
    ]  # fmt: skip


def test_a_warning_names_the_line_that_opened_the_file(tiled: bytes) -> None:
    with pytest.warns(UserWarning, match="tiles are lost") as caught:
        Image.open(BytesIO(tiled[: len(tiled) * 2 // 3])).load()
    assert [w.filename for w in caught] == [__file__]


def test_a_cut_file_shows_the_tiles_that_are_there(tiled: bytes) -> None:
    """The tiny model's transforms have no margin: intact tiles are exactly right."""
    whole, silent = opened(tiled)
    assert not silent
    assert lost(whole) == []
    _, tiles, start = parts(tiled)
    for length in (*range(start, len(tiled), 397), len(tiled) - 1):
        present = sum(start + sum(map(len, tiles[: n + 1])) <= length for n in range(12))
        if not present:
            with pytest.raises(OSError, match="no tile of the picture is intact"):
                opened(tiled[:length])
            continue
        pixels, said = opened(tiled[:length])
        assert lost(pixels) == list(range(present, 12))
        if present < 12:
            assert said == [f"damaged LIC file: {12 - present} of 12 tiles are lost and left grey"]
        grey = (pixels == 128).all(axis=2)
        assert np.array_equal(pixels[~grey], whole[~grey])


def test_a_flipped_bit_costs_its_tile_alone(tiled: bytes) -> None:
    whole, _ = opened(tiled)
    _, tiles, start = parts(tiled)
    damaged = bytearray(tiled)
    damaged[start + sum(map(len, tiles[:5])) + 6] ^= 4
    pixels, said = opened(bytes(damaged))
    assert lost(pixels) == [5]
    assert len(said) == 1
    pixels[64:128, 64:128] = whole[64:128, 64:128]
    assert np.array_equal(pixels, whole)


def test_the_shipped_model_shows_all_but_what_a_lost_tile_reaches() -> None:
    picture = load("coffee").resize((384, 256))
    data = coded(picture, tile=128, quality=3)
    whole, _ = opened(data)
    _, tiles, start = parts(data)
    damaged = bytearray(data)
    damaged[start + sum(map(len, tiles[:2])) + 20] ^= 4  # the last one of the first row
    pixels, said = opened(bytes(damaged))
    assert said == [ANY]
    assert (pixels[:128, 256:] == 128).all()
    near = np.zeros(pixels.shape[:2], bool)
    near[: 128 + 64, 256 - 64 :] = True
    assert np.abs(pixels.astype(int) - whole)[~near].max() <= 1
    assert np.abs(pixels.astype(int) - whole)[near].max() > 1
    with Image.open(BytesIO(damaged)) as image:
        with pytest.warns(UserWarning, match="tiles"):
            image.thumbnail((96, 64))
        assert image.size == (96, 64)


def test_between_two_lost_tiles_nothing_is_certain(tiled: bytes) -> None:
    """Their lengths may be what is damaged, and then another tile stands in the place of the next."""
    _, tiles, start = parts(tiled)
    damaged = bytearray(tiled)
    for n in (2, 8):
        damaged[start + sum(map(len, tiles[:n])) + 6] ^= 4
    assert lost(opened(bytes(damaged))[0]) == [2, 3, 4, 5, 6, 7, 8]


def flat_tiles() -> bytes:
    """Tiles of equal length, each of another brightness: what a damaged index may take for each other."""
    picture = Image.new("L", (192, 64))
    for n in range(3):
        picture.paste(60 * n, (64 * n, 0, 64 * n + 64, 64))
    return coded(picture, model=MODEL, tile=64, context="none", quality=2)


def index_damages(data: bytes) -> list[bytes]:
    """The file with the first length of its index replaced by every other of one byte."""
    first = parts(data)[2] - 2
    return [data[:first] + bytes((value,)) + data[first + 1 :] for value in range(128) if value != data[first]]


def wrong_tiles(data: bytes, damaged: list[bytes]) -> int:
    """How many of the pictures have a tile that is neither right nor grey."""
    whole, _ = opened(data)
    wrong = 0
    for case in damaged:
        try:
            pixels, said = opened(case)
        except OSError:
            continue
        assert said
        wrong += bool((pixels != whole)[pixels != 128].any())
    return wrong


def test_no_tile_is_shown_in_anothers_place() -> None:
    data = flat_tiles()
    assert wrong_tiles(data, index_damages(data)) == 0


def test_a_planted_silent_corruption_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trusting the index, as long as checksums are right, shows tiles in the wrong places: the test above sees it."""
    monkeypatch.setattr(salvage, "pack", lambda model, tile, *_: ANY)
    data = flat_tiles()
    assert wrong_tiles(data, index_damages(data)) > 0


def test_transparency_that_is_damaged_is_left_out_with_a_warning(photo: Image.Image) -> None:
    picture = photo.crop((0, 0, 70, 60))
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    data = bytearray(coded(picture, model=MODEL))
    data[data.index(b"ALPH") + 60] ^= 1
    pixels, said = opened(bytes(data))
    assert said == ["damaged LIC file: the transparency is left out"]
    with pytest.warns(UserWarning, match="the transparency is left out"):
        (batch,) = pillow_lic.decode_batch([bytes(data)])
    assert np.array_equal(np.asarray(batch), pixels)
    assert (pixels[:, :, 3] == 255).all()


def test_metadata_that_are_damaged_are_left_out_with_a_warning(small: Image.Image) -> None:
    data = bytearray(coded(small, model=MODEL, comment="a comment", dpi=(300, 300)))
    data[data.index(b"cmnt") + 8] ^= 1
    with pytest.warns(UserWarning, match="wrong checksum of the cmnt chunk; comment is left out"):
        image = Image.open(BytesIO(data))
    assert "comment" not in image.info
    assert image.info["dpi"] == (300, 300)
    image.load()


@pytest.mark.parametrize("exif", [{}, {"exif": b"Exif\0\0II*\0"}])
def test_verify_tells_what_opening_left_out(small: Image.Image, exif: dict[str, bytes]) -> None:
    data = bytearray(coded(small, model=MODEL, **exif))
    kind = b"exif" if exif else b"modl"
    data[data.index(kind) + 6] ^= 1
    with pytest.warns(UserWarning, match=f"wrong checksum of the {kind.decode()} chunk"):
        image = Image.open(BytesIO(data))
    with pytest.raises(OSError, match=f"wrong checksum of the {kind.decode()} chunk"):
        image.verify()


@pytest.mark.parametrize("damage", [lambda d: d[:60], lambda d: d[:20] + b"x" + d[21:], lambda d: d[:-30]])
def test_what_leaves_nothing_is_an_error(small: Image.Image, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(OSError, match=r"truncated|damaged"):
        opened(damage(coded(small, model=MODEL)))


def test_regions_and_imageio_do_the_same(tiled: bytes) -> None:
    _, tiles, start = parts(tiled)
    cut = tiled[: start + sum(map(len, tiles[:7]))]
    pixels, _ = opened(cut)
    with pytest.warns(UserWarning, match="5 of 12 tiles"):
        assert np.array_equal(Image.open(BytesIO(cut)).crop((30, 30, 200, 150)), pixels[30:150, 30:200])
    with pytest.warns(UserWarning, match="5 of 12 tiles"):
        assert np.array_equal(iio.imread(cut, extension=".lic"), pixels)


def test_verify_stays_strict(tiled: bytes) -> None:
    with Image.open(BytesIO(tiled[:-5])) as image, pytest.raises(OSError, match="truncated"):
        image.verify()


def test_without_it_everything_is_an_error(tiled: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    with pytest.raises(OSError, match="truncated"):
        opened(tiled[:-5])


def test_one_may_try_again(tiled: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    image = Image.open(BytesIO(tiled[:-5]))
    with pytest.raises(OSError, match="truncated"):
        image.load()
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    with pytest.warns(UserWarning, match="1 of 12 tiles"):
        image.load()


def test_a_damaged_frame_is_what_the_container_says(tiled: bytes) -> None:
    reader = container.Reader(BytesIO(tiled[:-5]), lenient=True)
    reader.metadata()
    (frame,) = reader.frames()
    assert frame.damaged
    assert len(frame.tiles) == 12
    assert isinstance(frame, Frame)

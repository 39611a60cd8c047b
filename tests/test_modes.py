from __future__ import annotations

import struct
import tracemalloc
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import coded, pixels_of, psnr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

import pillow_lic
from pillow_lic import alpha


@pytest.fixture
def cutout(photo: Image.Image) -> Image.Image:
    """A photograph with a soft round edge, noise where nobody sees it."""
    part = photo.crop((40, 20, 168, 148)).convert("RGBA")
    mask = Image.new("L", part.size)
    ImageDraw.Draw(mask).ellipse((10, 10, 110, 100), fill=255)
    noise = Image.effect_noise(part.size, 90).convert("RGBA")
    part = Image.composite(part, noise, mask)
    part.putalpha(mask.resize((64, 64)).resize(part.size, Image.Resampling.BICUBIC))
    return part


def opened(image: Image.Image, **options: object) -> Image.Image:
    found = Image.open(BytesIO(coded(image, **options)))
    found.load()
    return found


WANTED = {
    "1": "L", "L": "L", "LA": "LA", "La": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA", "RGBX": "RGB",
    "RGBa": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB",
}  # fmt: skip


@pytest.mark.parametrize("mode", WANTED)
def test_modes_become_what_holds_them(photo: Image.Image, mode: str) -> None:
    part = photo.crop((40, 20, 120, 90))
    if mode == "PA":
        image = part.convert("P").convert("PA")
    else:
        image = part.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode)).convert(mode)
    found = opened(image, quality=7)
    assert (found.mode, found.size) == (WANTED[mode], image.size)
    expected = image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode)).convert(WANTED[mode])
    limit = {"1": 18, "P": 20, "PA": 20}.get(mode, 27)
    assert psnr(found.convert("RGB"), expected.convert("RGB")) > limit


@pytest.mark.parametrize(("mode", "advice"), [("I", "scale"), ("F", "scale"), ("I;16", "scale"), ("LAB", "ImageCms")])
def test_modes_that_would_lose_are_refused(mode: str, advice: str) -> None:
    with pytest.raises(OSError, match=f"cannot write mode {mode} as LIC; .*{advice}"):
        coded(Image.new(mode, (20, 20)))


def test_a_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (40, 30), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 20, 30))
    image.info["transparency"] = 0
    found = opened(image)
    assert found.mode == "RGBA"
    assert np.array_equal(np.asarray(found)[:, :, 3], np.asarray(image.convert("RGBA"))[:, :, 3])


def test_a_transparent_colour_of_a_picture_without_palette() -> None:
    image = Image.new("RGB", (40, 30), (9, 9, 9))
    image.info["transparency"] = (9, 9, 9)
    assert opened(image).getextrema()[3] == (0, 0)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("tile", [0, 64])
def test_alpha_is_kept_exactly(cutout: Image.Image, mode: str, tile: int) -> None:
    image = cutout.convert(mode)
    found = opened(image, quality=1, tile=tile)
    assert found.mode == mode
    assert np.array_equal(np.asarray(found)[:, :, -1], np.asarray(image)[:, :, -1])
    seen = np.asarray(image)[:, :, -1] > 0
    assert psnr(np.asarray(found)[seen][:, :-1], np.asarray(image)[seen][:, :-1]) > 22.5


def test_alpha_quality(cutout: Image.Image) -> None:
    sizes = []
    for quality in (100, 60, 0):
        data = coded(cutout, alpha_quality=quality)
        sizes.append(len(data))
        values = pixels_of(data)[:, :, 3].astype(int)
        original = np.asarray(cutout)[:, :, 3].astype(int)
        assert (values[original == 0] == 0).all()
        assert (values[original == 255] == 255).all()
        assert np.abs(values - original).max() <= {100: 0, 60: 3, 0: 128}[quality]
    assert sizes == sorted(sizes, reverse=True)
    assert len(np.unique(values)) == 2
    with pytest.raises(ValueError, match="alpha_quality must be a whole number from 0 to 100"):
        coded(cutout, alpha_quality=101)


def test_transparent_pixels_cost_nothing(cutout: Image.Image) -> None:
    pixels = np.array(cutout)
    smooth, kept = coded(cutout, quality=5), coded(cutout, quality=5, exact=True)
    assert len(smooth) < 0.75 * len(kept)
    hidden = pixels[:, :, 3] == 0
    assert psnr(pixels_of(kept)[hidden], pixels[hidden]) > psnr(pixels_of(smooth)[hidden], pixels[hidden]) + 6


def test_a_picture_that_nobody_sees_is_small(photo: Image.Image) -> None:
    photo.putalpha(0)
    assert len(coded(photo, quality=8)) < 600


def test_transcoding_and_targets_keep_alpha(cutout: Image.Image) -> None:
    data = coded(cutout, context="none")
    pixels = pixels_of(data)
    assert np.array_equal(pixels_of(pillow_lic.transcode(data, "auto")), pixels)
    assert len(coded(cutout, target_size=5000)) <= 5000
    assert psnr(pixels_of(coded(cutout, target_psnr=30, exact=True))[:, :, :3], np.asarray(cutout)[:, :, :3]) >= 30


def test_imageio_reads_and_writes_alpha(cutout: Image.Image) -> None:
    for array in (np.asarray(cutout), np.asarray(cutout.convert("LA"))):
        data = iio.imwrite("<bytes>", array, extension=".lic", quality=5)
        back = iio.imread(data, extension=".lic")
        assert np.array_equal(back[:, :, -1], array[:, :, -1])
        assert iio.improps(data, extension=".lic").shape == array.shape == back.shape


def test_chunks_that_pillows_png_reader_stumbles_over_are_an_error(cutout: Image.Image) -> None:
    packed = alpha.pack(np.asarray(cutout)[:, :, 3])
    end = packed.rindex(b"IEND") - 4
    for profile in (b"", b"abc\0"):
        chunk = b"iCCP" + profile
        hostile = struct.pack(">I", len(profile)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        with pytest.raises(OSError, match="transparency does not decode"):
            alpha.unpack(packed[:end] + hostile + packed[end:], 128, 128)


def test_damaged_alpha_is_an_error(cutout: Image.Image) -> None:
    packed = alpha.pack(np.asarray(cutout)[:, :, 3])
    for broken in (b"", b"\x07", packed[:40], packed[:-60], b"\x01" + packed, b"\x00\x01\x02"):
        with pytest.raises(OSError, match=r"damaged|truncated|cannot"):
            alpha.unpack(broken, 128, 128)
    with pytest.raises(OSError, match="another size"):
        alpha.unpack(packed, 128, 127)


@settings(max_examples=60)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.booleans())
def test_any_alpha_comes_back(values: np.ndarray, binary: bool) -> None:
    values = np.where(values > 128, 255, 0).astype(np.uint8) if binary else values
    assert np.array_equal(alpha.unpack(alpha.pack(values), *values.shape[::-1]), values)


@given(arrays(np.uint8, (7, 5, 3)), arrays(np.uint8, (7, 5), elements=st.sampled_from([0, 0, 1, 255])))
def test_hiding_changes_transparent_pixels_only(colour: np.ndarray, values: np.ndarray) -> None:
    hidden = alpha.hide_transparent(colour, values)
    assert np.array_equal(hidden[values > 0], colour[values > 0])
    if (values > 0).any():
        seen = colour[values > 0]
        assert (hidden >= seen.min(axis=0)).all()
        assert (hidden <= seen.max(axis=0)).all()
    else:
        assert len(np.unique(hidden.reshape(-1, 3), axis=0)) == 1
    grey = alpha.hide_transparent(colour[:, :, 0], values)
    assert np.array_equal(grey, hidden[:, :, 0])


def test_hiding_takes_little_memory() -> None:
    colour = np.random.default_rng(1).integers(0, 256, (300, 401, 3), np.uint8)
    values = np.zeros(colour.shape[:2], np.uint8)
    values[100:120] = 255
    tracemalloc.start()
    try:
        alpha.hide_transparent(colour, values)
        assert tracemalloc.get_traced_memory()[1] < 24 * values.size
    finally:
        tracemalloc.stop()


def test_comment_and_resolution(photo: Image.Image, tmp_path: Path) -> None:
    info = Image.open(BytesIO(coded(photo, comment="schön", dpi=(300, 299.5)))).info
    assert (info["comment"], info["dpi"]) == ("schön".encode(), (300.0, 299.5))
    photo.save(tmp_path / "a.jpg", comment=b"kept", dpi=(72, 72))
    with Image.open(tmp_path / "a.jpg") as jpeg:
        info = Image.open(BytesIO(coded(jpeg))).info
    assert info["comment"] == b"kept"
    assert "dpi" not in info
    array = np.asarray(photo)
    data = iio.imwrite("<bytes>", array, extension=".lic", dpi=(10, 20), comment=b"c")
    metadata = iio.immeta(data, extension=".lic")
    assert (metadata["dpi"], metadata["comment"]) == ((10.0, 20.0), b"c")
    for wrong in (72, ("a", "b"), (1, 2, 3)):
        with pytest.raises(TypeError, match="dpi must be two numbers"):
            coded(photo, dpi=wrong)


def test_a_profile_of_other_colours_is_left_behind(part: Image.Image) -> None:
    profiles = {kind: bytes(16) + kind + bytes(100) for kind in (b"CMYK", b"GRAY", b"RGB ")}
    for mode, kind, kept in (
        ("CMYK", b"CMYK", False),
        ("RGB", b"RGB ", True),
        ("L", b"GRAY", True),
        ("RGB", b"GRAY", False),
    ):
        image = part.convert(mode)
        image.info["icc_profile"] = profiles[kind]
        assert ("icc_profile" in opened(image).info) == kept
        assert opened(image, icc_profile=b"mine").info["icc_profile"] == b"mine"
        assert ("icc_profile" in opened(image, icc_profile=profiles[kind]).info) == kept  # as "keep all" gives it
        (batched,) = pillow_lic.encode_batch([image])
        assert batched == coded(image)


def test_saving_with_the_info_of_what_was_opened(part: Image.Image, tmp_path: Path) -> None:
    lic = opened(part, quality=3, context="none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lic.save(tmp_path / "b.lic", **lic.info)
    with Image.open(tmp_path / "b.lic") as again:
        assert {k: again.info[k] for k in lic.info} == lic.info
    part.save(tmp_path / "a.jpg", progressive=True)
    with Image.open(tmp_path / "a.jpg") as jpeg:
        assert opened(jpeg, progressive=jpeg.info["progressive"]).info["progressive"] is True


class OnlyReads:
    """What Image.open asks of a file object, and no more."""

    def __init__(self, data: bytes) -> None:
        file = BytesIO(data)
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def test_a_file_object_that_only_reads(part: Image.Image) -> None:
    with Image.open(OnlyReads(coded(part))) as image:
        image.load()
        assert image.size == part.size


def test_what_a_png_says_under_the_names_of_metadata_is_no_metadata() -> None:
    image = Image.new("RGB", (20, 20))
    image.info |= {"icc_profile": "a text", "duration": "abc"}
    assert "icc_profile" not in opened(image).info
    assert opened(image, save_all=True).size == (20, 20)


def test_fewer_levels_of_alpha_hide_what_they_make_transparent(cutout: Image.Image) -> None:
    reduced = cutout.copy()
    values = alpha.reduced(np.asarray(cutout)[:, :, 3], 0)
    assert set(np.unique(values)) == {0, 255}
    reduced.putalpha(Image.fromarray(values))
    assert coded(cutout, alpha_quality=0) == coded(reduced)


def test_what_hides_behind_transparency_has_no_steps() -> None:
    colour, seen = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    colour[:, 56:], seen[:, :8], seen[:, 56:] = 255, 255, 255
    shown = alpha.hide_transparent(colour, seen).astype(int)
    assert np.array_equal(shown[seen > 0], colour[seen > 0])
    assert (np.diff(shown, axis=1) >= 0).all()
    assert np.abs(np.diff(shown[:, 12:52], axis=1)).max() < 24


def test_a_target_counts_what_is_seen(photo: Image.Image) -> None:
    """Flat colours that nobody sees have hardly an error."""
    part = photo.crop((0, 0, 128, 128)).convert("RGBA")
    seen = np.zeros((128, 128), np.uint8)
    seen[32:96, 32:96] = 255
    part.putalpha(Image.fromarray(seen))
    shown = pixels_of(coded(part, target_psnr=36))
    assert 36 <= psnr(shown[seen > 0][:, :3], np.asarray(part)[seen > 0][:, :3]) < 36.6

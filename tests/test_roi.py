from __future__ import annotations

from io import BytesIO

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from conftest import coded, pixels_of, psnr
from PIL import Image

import pillow_lic
from pillow_lic.entropy.coder import SymbolDecoder, SymbolEncoder
from pillow_lic.models.hyperprior import SCALE_STEP
from pillow_lic.quantizers import adaptive
from pillow_lic.search.view import TileView


@pytest.fixture
def mask(photo: Image.Image) -> Image.Image:
    mask = Image.new("L", photo.size)
    mask.paste(255, (64, 0, 192, 128))
    return mask


def inside(picture: object) -> np.ndarray:
    return np.asarray(picture)[:128, 64:192]


def outside(picture: object) -> np.ndarray:
    return np.asarray(picture)[128:]


@pytest.mark.parametrize("effort", [0, 1])
@pytest.mark.parametrize("tile", [0, 128])
def test_bits_go_where_the_mask_is_bright(photo: Image.Image, mask: Image.Image, effort: int, tile: int) -> None:
    size = 6000
    even = pixels_of(coded(photo, target_size=size, effort=effort, tile=tile))
    data = coded(photo, target_size=size, effort=effort, tile=tile, roi=mask)
    assert 0.97 * size < len(data) <= size
    shown = pixels_of(data)
    assert psnr(inside(shown), inside(photo)) > psnr(inside(even), inside(photo)) + 1
    assert psnr(outside(shown), outside(photo)) < psnr(outside(even), outside(photo)) - 1


@pytest.mark.parametrize("measure", ["mse", "ssim-sensitive"])
def test_a_search_lets_errors_count_as_the_mask_says(photo: Image.Image, mask: Image.Image, measure: str) -> None:
    """The second derivative of the distortion by pixels, under white against under black."""
    torch.manual_seed(1)
    pixels = 40 * torch.randn(1, 3, 128, 128)
    fineness = torch.ones(8, 8)
    fineness[:, :4], fineness[:, 4:] = 2, 0.5
    nothing = torch.zeros(1, 8, 8)
    view = TileView(
        lambda _: shown, pixels, nothing[None], 0, 0, nothing, nothing > 0, nothing[:, :1, :1], 1.0, measure,
        fineness=fineness,
    )  # fmt: skip
    shown = pixels.clone().requires_grad_(True)
    with torch.no_grad():
        shown += 1
    (gradient,) = torch.autograd.grad(view.distortion(torch.zeros(0)), shown)
    fine, coarse = gradient[..., :64].mean(), gradient[..., 64:].mean()
    assert float(fine / coarse) == pytest.approx(16, rel=0.1)


@pytest.mark.parametrize("asked", ["roi", True, "importance"])
def test_a_search_that_begins_with_z_knows_where_bits_go(photo: Image.Image, mask: Image.Image, asked: object) -> None:
    box = (64, 32, 192, 160)
    part = photo.crop(box)
    how = {"roi": mask.crop(box)} if asked == "roi" else {"adaptive": asked}
    plain, searched = (coded(part, effort=effort, **how) for effort in (0, 3))
    gain = psnr(pixels_of(searched), np.asarray(part)) - psnr(pixels_of(plain), np.asarray(part))
    assert len(searched) < len(plain) * 1.18**gain  # what a decibel takes


def test_masks_of_every_kind(photo: Image.Image, mask: Image.Image) -> None:
    data = coded(photo, roi=mask)
    assert coded(photo, roi=np.asarray(mask)) == data
    assert coded(photo, roi=lambda im: mask.resize(im.size)) == data
    assert coded(photo, roi=mask.convert("RGB")) == data
    with pytest.raises(ValueError, match="roi has 5x5 pixels, the image 256x192"):
        coded(photo, roi=mask.resize((5, 5)))
    with pytest.raises(TypeError, match=r"roi must be an image or an 8-bit array \(H, W\), not str"):
        coded(photo, roi="mask.png")
    with pytest.raises(TypeError, match=r"\(H, W\), not one of uint8 \(192, 256, 1\)"):
        coded(photo, roi=np.asarray(mask)[:, :, None])
    with pytest.raises(TypeError, match="not one of int64"):
        coded(photo, roi=np.asarray(mask).astype(np.int64))
    for kind in (np.float32, np.uint16):  # a saliency map in 0...1 would become black without a word
        with pytest.raises(TypeError, match=r"8 bits a pixel, not mode (F|I;16)"):
            coded(photo, roi=(np.asarray(mask) / 255).astype(kind))


def test_an_even_mask_is_another_quality(photo: Image.Image) -> None:
    fine, coarse = (coded(photo, quality=4, roi=Image.new("L", photo.size, value)) for value in (255, 0))
    assert len(fine) > len(coded(photo, quality=5))
    assert len(coarse) < len(coded(photo, quality=3))
    assert len(coded(photo, roi=Image.new("L", photo.size, 128))) <= len(coded(photo)) + 8


def test_other_contexts_and_regions(photo: Image.Image, mask: Image.Image) -> None:
    data = coded(photo, roi=mask, tile=64)
    expected = pixels_of(data)
    assert np.array_equal(pixels_of(pillow_lic.transcode(data, "auto")), expected)
    region = Image.open(BytesIO(data)).read_region((100, 50, 200, 150))
    assert np.array_equal(np.asarray(region), expected[50:150, 100:200])


def test_levels_come_back() -> None:
    rng = np.random.default_rng(1)
    levels = rng.integers(-16, 17, (7, 9)).astype(np.int8)
    encoder = SymbolEncoder()
    adaptive.encode(encoder, levels)
    data = encoder.finish()
    assert np.array_equal(adaptive.decode(SymbolDecoder(data), 7, 9), levels)
    even = SymbolEncoder()
    adaptive.encode(even, np.zeros((12, 8), np.int8))
    assert len(even.finish()) <= 8


def test_levels_out_of_range_are_damage() -> None:
    encoder = SymbolEncoder()
    encoder.encode(np.array([10, 9], np.int32), np.zeros(2, np.uint8), adaptive._tables())
    with pytest.raises(OSError, match="level of quality is out of range"):
        adaptive.decode(SymbolDecoder(encoder.finish()), 1, 2)


def test_factors_are_rungs_of_the_ladder() -> None:
    wanted = 65536 * np.exp(SCALE_STEP * np.arange(-16, 17))
    assert np.abs(np.array(adaptive.FACTORS) - wanted).max() <= 0.51


def test_levels_of_a_mask() -> None:
    mask = np.zeros((70, 130), np.uint8)
    mask[:, 64:128] = 255
    assert adaptive.levels_of(mask, 5, 9).tolist() == [[-8, 8, -8], [-8, 8, -8]]


def test_imageio_takes_a_mask(photo: Image.Image, mask: Image.Image) -> None:
    data = iio.imwrite("<bytes>", np.asarray(photo), extension=".lic", roi=np.asarray(mask))
    assert np.array_equal(pixels_of(data), pixels_of(coded(photo, roi=mask)))

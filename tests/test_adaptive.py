from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from conftest import coded, load, pixels_of
from PIL import Image

from pillow_lic import codec, container
from pillow_lic.distortions import ssim_map
from pillow_lic.models.loading import load_model
from pillow_lic.search.even import even_levels


def worst(picture: np.ndarray, original: Image.Image) -> float:
    """Mean SSIM of the worst 5 % of 8x8 blocks."""
    pair = (torch.from_numpy(np.array(x, np.float32)).permute(2, 0, 1)[None] - 127.5 for x in (picture, original))
    blocks = torch.nn.functional.avg_pool2d(ssim_map(*pair).mean(dim=1), 8).flatten().sort().values
    return float(blocks[: len(blocks) // 20].mean())


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("tile", [0, 128])
def test_the_worst_blocks_look_better_at_the_same_size(tile: int) -> None:
    picture = load("coffee")
    plain = coded(picture, target_size=4000, tile=tile)
    data = coded(picture, target_size=4000, tile=tile, adaptive=True)
    assert len(data) <= 4000
    assert worst(pixels_of(data), picture) > worst(pixels_of(plain), picture) + 0.02


def test_the_same_quality_takes_about_the_same_size(photo: Image.Image) -> None:
    plain, data = coded(photo), coded(photo, adaptive=True)
    assert 0.93 * len(plain) < len(data) < 1.07 * len(plain)
    assert container.Reader(BytesIO(data)).header.adaptive
    assert not container.Reader(BytesIO(plain)).header.adaptive
    assert np.array_equal(pixels_of(codec.transcode(data, "none")), pixels_of(data))


def test_masks_go_on_top(photo: Image.Image) -> None:
    half = Image.new("L", photo.size)
    half.paste(255, (0, 0, 128, 192))
    alone, both = (
        np.asarray(photo, float) - pixels_of(coded(photo, adaptive=True, **roi)) for roi in ({}, {"roi": half})
    )
    assert np.square(both[:, :128]).mean() < np.square(alone[:, :128]).mean()
    assert np.square(both[:, 128:]).mean() > np.square(alone[:, 128:]).mean()


@pytest.mark.parametrize("size", [(1, 1), (65, 17), (130, 70)])
def test_any_size_and_mode(photo: Image.Image, size: tuple[int, int]) -> None:
    for mode in ("L", "RGBA"):
        picture = photo.resize(size).convert(mode)
        with Image.open(BytesIO(coded(picture, adaptive=True))) as image:
            image.load()
            assert (image.size, image.mode) == (size, mode)


def test_bits_go_from_what_is_good_to_what_is_bad() -> None:
    similarity = np.full((3, 8, 16), 0.9, np.float32)
    similarity[:, 0, 8:12] = np.array([0.2, 0.5, 0.8])[:, None]
    similarity[:, :, :8] = np.array([0.97, 0.98, 0.99])[:, None, None]
    bits = np.array([50.0, 100.0, 200.0])[:, None, None].repeat(2, axis=2)
    levels = even_levels((-8, 0, 8), similarity, bits, (8, 16))
    assert levels[0, 0] < 0 < levels[0, 1]
    assert sum(np.interp(k, (-8, 0, 8), (50, 100, 200)) for k in levels[0]) <= 200
    same = even_levels((-8, 0, 8), np.full((3, 8, 8), 0.5, np.float32), bits[:, :, :1], (8, 8))
    assert abs(same[0, 0]) <= 8


def test_what_lies_outside_the_picture_does_not_count() -> None:
    """Of what the worst blocks are: whatever an encoder makes of the area behind the picture's edge."""
    similarity = np.full((3, 8, 16), 0.9, np.float32)
    similarity[:, :3, :2] = np.array([0.2, 0.5, 0.8])[:, None, None]
    bits = np.array([50.0, 100.0, 200.0])[:, None, None].repeat(2, axis=2)
    found = even_levels((-8, 0, 8), similarity, bits, (3, 10))
    for outside in (0.1, 1.0):
        similarity[:, 3:], similarity[:, :, 10:] = outside, outside
        assert np.array_equal(even_levels((-8, 0, 8), similarity, bits, (3, 10)), found)


def test_adaptive_is_yes_or_no(photo: Image.Image) -> None:
    with pytest.raises(ValueError, match="adaptive must be True, False or 'importance', not 'much'"):
        coded(photo, adaptive="much")


def test_an_importance_map_leaves_random_numbers_alone(part: Image.Image) -> None:
    load_model("mse")._made.clear()
    state = torch.get_rng_state()
    coded(part, adaptive="importance")
    assert torch.equal(state, torch.get_rng_state())

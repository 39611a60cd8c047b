from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import coded, pixels_of, psnr
from PIL import Image

from pillow_lic.bench.metrics import ms_ssim
from pillow_lic.distortions import DISTORTIONS, ssim_sensitive
from pillow_lic.models.loading import load_model
from pillow_lic.models.transforms import rate_weight


def loss(picture: Image.Image, quality: float, effort: int) -> float:
    """Lambda * D + R in bits, of the real file of the model for MS-SSIM."""
    data = coded(picture, quality=quality, tune="ms-ssim", effort=effort)
    shown, original = (
        torch.tensor(np.asarray(x) - 127.5, dtype=torch.float32).permute(2, 0, 1)[None]
        for x in (pixels_of(data), picture)
    )
    lost = float(rate_weight(quality) * DISTORTIONS["ms-ssim"](shown, original))
    return lost * picture.width * picture.height + 8 * len(data)


def test_each_tune_is_better_at_its_own_measure(photo: Image.Image) -> None:
    found = {tune: pixels_of(coded(photo, tune=tune, target_size=3000)) for tune in ("mse", "ms-ssim")}
    assert psnr(found["mse"], photo) > psnr(found["ms-ssim"], photo)
    likeness = {tune: ms_ssim(shown, np.asarray(photo)) for tune, shown in found.items()}
    assert likeness["ms-ssim"] > likeness["mse"]


@pytest.mark.usefixtures("in_float32")
def test_the_search_minimises_what_the_model_is_trained_for(photo: Image.Image) -> None:
    assert load_model("mse").distortion == "mse"
    assert load_model("ms-ssim").distortion == "ms-ssim"
    picture = photo.crop((16, 0, 192, 176))
    plain, searched = (loss(picture, 3, n) for n in (0, 3))
    assert searched < 0.99 * plain


def test_pictures_too_small_for_ms_ssim_are_coded_without_search(photo: Image.Image) -> None:
    small = photo.crop((0, 0, 100, 100))
    assert coded(small, tune="ms-ssim", effort=3) == coded(small, tune="ms-ssim")


def test_errors_count_most_where_ssim_loses_most_by_them() -> None:
    generator = torch.Generator().manual_seed(1)
    original = torch.zeros(1, 3, 64, 64)
    original[..., 32:] = 60 * torch.randn(1, 3, 64, 32, generator=generator)
    flat, busy = torch.zeros(2, 1, 3, 64, 64)
    flat[..., 8:24], busy[..., 40:56] = 3, 3
    assert ssim_sensitive(original + flat, original) > 4 * ssim_sensitive(original + busy, original)
    everywhere = ssim_sensitive(original + 3, original)
    assert torch.allclose(everywhere, torch.tensor([9.0]), rtol=1e-4)


def test_ssim_is_a_way_of_searching_with_any_model(photo: Image.Image) -> None:
    picture = photo.crop((60, 30, 124, 94))
    data = coded(picture, tune="ssim")
    assert data == coded(picture, tune="ssim", effort=1, model="mse")
    assert data != coded(picture, effort=1)
    searched = coded(picture, tune="ssim", model="ms-ssim", effort=3)
    assert searched != coded(picture, tune="ms-ssim", effort=3)


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("effort", [1, 2])
def test_looks_find_what_pays_by_ms_ssim(photo: Image.Image, effort: int) -> None:
    """Where the distortion curves more than elsewhere, shorter steps must be taken."""
    plain, searched = (loss(photo, 2, n) for n in (0, effort))
    assert searched < 0.998 * plain

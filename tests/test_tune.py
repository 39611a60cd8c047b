from __future__ import annotations

import numpy as np
from conftest import coded, pixels_of, psnr
from PIL import Image

from pillow_lic.bench.metrics import ms_ssim
from pillow_lic.models.loading import load_model


def test_each_tune_is_better_at_its_own_measure(photo: Image.Image) -> None:
    found = {tune: pixels_of(coded(photo, tune=tune, target_size=3000)) for tune in ("mse", "ms-ssim")}
    assert psnr(found["mse"], photo) > psnr(found["ms-ssim"], photo)
    likeness = {tune: ms_ssim(shown, np.asarray(photo)) for tune, shown in found.items()}
    assert likeness["ms-ssim"] > likeness["mse"]


def test_the_search_minimises_what_the_model_is_trained_for(photo: Image.Image) -> None:
    assert load_model("mse").distortion == "mse"
    assert load_model("ms-ssim").distortion == "ms-ssim"
    plain, searched = (coded(photo, tune="ms-ssim", quality=3, effort=effort) for effort in (0, 2))
    assert searched != plain


def test_pictures_too_small_for_ms_ssim_are_coded_without_search(photo: Image.Image) -> None:
    small = photo.crop((0, 0, 100, 100))
    assert coded(small, tune="ms-ssim", effort=3) == coded(small, tune="ms-ssim")

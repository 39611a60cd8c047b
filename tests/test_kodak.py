"""Real photographs, where the checkout lies beside them; skipped elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import coded, pixels_of, psnr
from PIL import Image

from pillow_lic.bench.codecs import JPEG
from pillow_lic.bench.metrics import bd_rate


@pytest.mark.parametrize("name", ["kodim05", "kodim15", "kodim23"])
def test_far_smaller_than_jpeg(data_folder: Path, name: str) -> None:
    with Image.open(data_folder / "kodak" / f"{name}.png") as image:
        image.load()
    area = image.width * image.height / 8
    ours = [(data := coded(image, quality=q), psnr(image, pixels_of(data))) for q in (1, 2, 3.5, 5, 6.5, 8)]
    jpeg = [(data := JPEG.encode(image, q), psnr(image, pixels_of(data))) for q in JPEG.values]
    curves = [[(len(d) / area, v) for d, v in curve] for curve in (jpeg, ours)]
    assert all(np.diff([len(d) for d, _ in ours]) > 0)
    assert all(np.diff([v for _, v in ours]) > 0)
    assert bd_rate(curves[0], curves[1]) < -35

"""Real photographs, where the checkout lies beside them; skipped elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import pixels_of, psnr
from PIL import Image

from pillow_lic.bench.codecs import AVIF, JPEG, LIC, Codec
from pillow_lic.bench.metrics import bd_rate


@pytest.mark.parametrize(
    ("name", "jpeg", "avif"), [("kodim05", -48, -14), ("kodim15", -58, -17), ("kodim23", -66, -29)]
)
def test_far_smaller_than_others(data_folder: Path, name: str, jpeg: float, avif: float) -> None:
    """Three points short of what docs/benchmarks.md says of these pictures."""
    with Image.open(data_folder / "kodak" / f"{name}.png") as image:
        image.load()

    def curve(codec: Codec, values: Sequence[float]) -> list[tuple[float, float]]:
        files = [codec.encode(image, value) for value in values]
        return [(8 * len(data) / image.width / image.height, psnr(image, pixels_of(data))) for data in files]

    ours = curve(LIC, (1, 2, 3.5, 5, 6.5, 8))
    assert all(np.diff(ours, axis=0).min(axis=1) > 0)
    assert bd_rate(curve(JPEG, JPEG.values), ours) < jpeg
    assert bd_rate(curve(AVIF, AVIF.values), ours) < avif

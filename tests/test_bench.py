from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import load

from pillow_lic.bench import codecs, metrics


def test_psnr_of_known_differences() -> None:
    a = np.zeros((8, 8, 3), np.uint8)
    assert metrics.psnr(a, a + np.uint8(1)) == pytest.approx(20 * math.log10(255))
    assert metrics.psnr(a, a) == math.inf


def test_ms_ssim() -> None:
    a = np.asarray(load("astronaut"))
    blurred = np.asarray(load("astronaut").reduce(3).resize((256, 192)))
    assert metrics.ms_ssim(a, a) == pytest.approx(1)
    assert 0.4 < metrics.ms_ssim(a, blurred) < 0.99
    assert math.isnan(metrics.ms_ssim(a[:100], a[:100]))


def test_bd_rate_of_a_known_saving() -> None:
    anchor = [(0.25 * 1.5**n, 28 + 2.1 * n) for n in range(7)]
    saved = [(0.8 * rate, value) for rate, value in anchor]
    assert metrics.bd_rate(anchor, saved) == pytest.approx(-20, abs=0.01)
    assert metrics.bd_rate(anchor, anchor) == pytest.approx(0, abs=1e-9)
    assert math.isnan(metrics.bd_rate(anchor, [(r, v + 100) for r, v in anchor]))


def test_codecs_are_chosen_by_name() -> None:
    assert [c.name for c in codecs.chosen(["webp", "JPEG"])] == ["LIC", "WebP", "JPEG"]
    assert {"LIC", "JPEG", "WebP", "AVIF"} <= {c.name for c in codecs.available()}

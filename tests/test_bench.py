from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import load

from pillow_lic.bench import codecs, metrics, report


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
    assert math.isnan(metrics.bd_rate(anchor, []))
    assert math.isnan(metrics.bd_rate([(1.0, math.inf)], anchor))  # a picture that a codec loses nothing of


def test_published_curves(tmp_path: Path) -> None:
    curve = {"bpp": [0.1, 0.2], "psnr-rgb": [28.0, 30.0], "ms-ssim-rgb": [0.9, 0.99]}
    for name in ("vtm", "compressai-mbt2018_ms-ssim_cuda", "of-another-kind"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"results": curve}))
    (tmp_path / "paper-elic2022_mse.json").write_text(json.dumps({"results": {"bpp": [0.3], "psnr": [31.0]}}))
    psnr, similarity = report.published_curves(tmp_path)
    assert psnr == {"VTM": [(0.1, 28.0), (0.2, 30.0)], "ELIC (paper)": [(0.3, 31.0)]}
    assert similarity == {
        name: [(0.1, pytest.approx(10)), (0.2, pytest.approx(20))]
        for name in ("VTM", "mbt2018 for MS-SSIM (CompressAI)")
    }
    table = report.bd_text("LIC", {"VTM": 5.04}, {"VTM": -3.0, "other": -10.0}).splitlines()
    assert [line.split() for line in table[2:]] == [["VTM", "+5.0", "-3.0"], ["other", "-", "-10.0"]]


def test_codecs_are_chosen_by_name() -> None:
    assert [c.name for c in codecs.chosen(["webp", "JPEG"])] == ["LIC", "WebP", "JPEG"]
    assert {"LIC", "JPEG", "WebP", "AVIF"} <= {c.name for c in codecs.available()}


def test_similarity_that_is_no_number_stays_so() -> None:
    assert math.isnan(metrics.decibel(math.nan))
    assert metrics.decibel(1.0) == math.inf

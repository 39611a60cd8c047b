from __future__ import annotations

import math
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import pillow_lic
from pillow_lic import options
from pillow_lic.options import EncoderOptions, options_from, quality_of


@pytest.mark.parametrize("value", [1, 8, 4.5, np.float32(2), Fraction(7, 2)])
def test_quality_takes_any_number(value: object) -> None:
    assert EncoderOptions(quality=value).quality == pytest.approx(float(value))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, 9, 0.99, 8.01, math.nan, math.inf, -4])
def test_quality_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match="quality must be a number from 1 to 8"):
        EncoderOptions(quality=value)


@pytest.mark.parametrize("value", ["high", "4", None, True, b"4", [4]])
def test_quality_of_another_kind(value: object) -> None:
    with pytest.raises(TypeError, match="quality must be a number from 1 to 8"):
        EncoderOptions(quality=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("context", "fancy", "'auto', 'none', 'checkerboard'"),
        ("tune", "psnr", "'mse', 'ms-ssim'"),
        ("effort", 10, "effort must be"),
        ("target_size", 0, "target_size must be above 0"),
        ("target_bpp", -1, "target_bpp must be above 0"),
        ("target_psnr", math.nan, "target_psnr must be a number above 0"),
        ("tile", 100, "multiple of 64"),
        ("tile", -64, "multiple of 64"),
        ("tile", 2112, "multiple of 64"),
        ("quality", 10**400, "quality must be"),
    ],
)
def test_values_that_do_not_exist(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("context", 1), ("effort", 1.5), ("effort", True), ("tile", "64"), ("target_size", 9.5), ("target_psnr", "35")],
)
def test_values_of_another_kind(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=name):
        EncoderOptions(**{name: value})  # type: ignore[arg-type]


def test_one_target_at_a_time() -> None:
    assert EncoderOptions(target_psnr=np.float32(35)).target == ("target_psnr", 35.0)  # type: ignore[arg-type]
    assert EncoderOptions().target is None
    with pytest.raises(ValueError, match="give one of target_size and target_bpp"):
        EncoderOptions(target_size=1000, target_bpp=1)


def test_integers_of_numpy_are_integers() -> None:
    opts = EncoderOptions(effort=np.int64(0), tile=np.int32(128))  # type: ignore[arg-type]
    assert (opts.effort, opts.tile) == (0, 128)


def test_quality_code_covers_the_range_in_256ths() -> None:
    assert EncoderOptions(quality=1).quality_code == 0
    assert EncoderOptions(quality=8).quality_code == 1792
    assert quality_of(EncoderOptions(quality=4.3).quality_code) == pytest.approx(4.3, abs=1 / 512)


def test_unknown_options_warn_and_suggest() -> None:
    with pytest.warns(UserWarning, match=r"unknown option 'qualty'; did you mean 'quality'\?"):
        assert options_from({"qualty": 3}).quality == 4


def test_known_extras_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert options_from({"exif": b"", "quality": 2}, also_known=frozenset({"exif"})).quality == 2


def test_model_may_be_a_path() -> None:
    assert EncoderOptions(model=Path("a.safetensors")).model == "a.safetensors"  # type: ignore[arg-type]


def test_defaults_hold_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "defaults", EncoderOptions())
    pillow_lic.register_lic_opener(quality=6)
    assert options_from({}).quality == 6
    assert options_from({"quality": 2}).quality == 2
    with pytest.raises(TypeError, match="unknown option"):
        pillow_lic.set_defaults(qality=3)
    with pytest.raises(ValueError, match="quality"):
        pillow_lic.set_defaults(quality=30)


def test_tune_and_model_choose_the_model() -> None:
    assert EncoderOptions().model_name == "mse"
    assert EncoderOptions(tune="ms-ssim").model_name == "ms-ssim"
    assert EncoderOptions(model="own").model_name == "own"
    with pytest.raises(ValueError, match="either model or tune"):
        EncoderOptions(model="own", tune="mse")


def test_a_call_overrules_defaults_that_speak_of_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "defaults", EncoderOptions(model="mine", target_size=500))
    assert options_from({"quality": 2}).model_name == "mine"
    assert options_from({"tune": "ms-ssim"}).model_name == "ms-ssim"
    assert options_from({"target_psnr": 30}).target == ("target_psnr", 30)


def test_a_way_of_searching_goes_with_any_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "defaults", EncoderOptions(model="mine"))
    assert options.options_from({"tune": "ssim"}).model_name == "mine"
    assert options.options_from({"tune": "ms-ssim"}).model_name == "ms-ssim"
    monkeypatch.setattr(options, "defaults", EncoderOptions(tune="ssim"))
    assert options.options_from({"model": "mine"}).tune == "ssim"


def test_a_quality_replaces_a_default_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "defaults", EncoderOptions())
    pillow_lic.set_defaults(target_size=500)
    assert options_from({}).target == ("target_size", 500)
    assert options_from({"quality": 6}).target is None
    assert options_from({"quality": 6, "target_bpp": 1}).target == ("target_bpp", 1)
    pillow_lic.set_defaults(quality=5)
    assert options_from({}).target is None
    pillow_lic.set_defaults(tune="ms-ssim")
    pillow_lic.set_defaults(model="mine")
    assert options_from({}).model_name == "mine"

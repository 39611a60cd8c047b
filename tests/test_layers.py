"""Sums of whole numbers in bytes and in floating point agree with Python's integers."""

from __future__ import annotations

from io import BytesIO
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import coded, pixels_of
from PIL import Image

from pillow_lic.entropy import layers
from pillow_lic.entropy.layers import IntegerLayer
from pillow_lic.models import loading

NATIVE = pytest.mark.skipif(not layers.bytes_work(), reason="this CPU has no products of bytes")


@pytest.fixture
def in_floating_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """No products of bytes, and networks that have not been made with them."""
    monkeypatch.setattr(layers, "bytes_work", lambda: False)
    monkeypatch.setattr(loading, "_loaded", {})


def made(weight: np.ndarray, bias: np.ndarray, shift: np.ndarray, limit: int) -> IntegerLayer:
    dtype = torch.float32 if limit < 256 else torch.float64
    return IntegerLayer(torch.from_numpy(weight), bias, shift, limit, dtype)


def in_python(weight: np.ndarray, bias: np.ndarray, shift: np.ndarray, x: np.ndarray) -> list[list[int]]:
    sums = weight.astype(object) @ x.astype(object) + bias.astype(object)[:, None]
    return [[int(v) >> int(s) for v in row] for row, s in zip(sums, shift, strict=True)]


CASES = [(127, 255, 0), (127, 255, 7), (127, 32767, 9), (16383, 32767, 8), (16383, 32767, 15)]


@pytest.mark.parametrize("native", [pytest.param(True, marks=NATIVE), False])
@pytest.mark.parametrize(("heavy", "limit", "shift"), CASES)
def test_layers_equal_python_integers(
    heavy: int, limit: int, shift: int, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "bytes_work", lambda: native)
    rng = np.random.default_rng(heavy + limit + shift)
    weight = rng.integers(-heavy, heavy + 1, (9, 200))
    weight[0], weight[1] = heavy, -heavy
    x = rng.integers(-limit, limit + 1, (200, 23))
    x[:, 0], x[:, 1], x[:, 2] = limit, -limit, 0
    bias = np.broadcast_to(rng.integers(-9999, 9999, 9), (8, 9)).astype(np.int64)
    shifts = np.full(9, shift, np.int64)
    layer = made(weight, bias, shifts, limit)
    assert isinstance(layer._many, layers._Bytes) == native
    expected = in_python(weight, bias[0], shifts, x)
    limited = [[max(-limit, min(limit, v)) for v in row] for row in expected]
    for times in (1, 5):  # few columns and many
        columns = torch.from_numpy(np.tile(x, times))
        for kind in (torch.int64, torch.float64):
            assert layer(columns.to(kind), 700).tolist() == [times * row for row in expected]
        wanted = [times * [max(v, v >> 3) for v in row] for row in limited]
        assert layer.activated(columns, 700).tolist() == wanted


@NATIVE
def test_sums_that_bytes_cannot_hold_are_left_to_floating_point() -> None:
    weight, shift = np.full((1, 4000), 16000), np.array([12])
    bias = np.zeros((8, 1), np.int64)
    assert isinstance(made(weight, bias, shift, 32767)._many, layers._Floats)
    assert isinstance(made(weight[:, :400], bias, shift, 32767)._many, layers._Bytes)
    assert isinstance(made(weight[:, :400], bias, shift - 5, 32767)._many, layers._Floats)


def test_a_library_that_saturates_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        pairs = one.int()[:, :, None] * other.int()[None]
        return (pairs[:, ::2] + pairs[:, 1::2]).clamp(-(2**15), 2**15 - 1).sum(dim=1, dtype=torch.int32)

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True}, raising=False)
    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not layers.bytes_work.__wrapped__()


@NATIVE
@pytest.mark.parametrize("context", ["none", "staircase", "autoregressive"])
def test_files_decode_alike_in_floating_point(
    context: str, small: Image.Image, in_floating_point: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = coded(small, context=context)
    plain = pixels_of(data)
    monkeypatch.undo()
    assert coded(small, context=context) == data
    assert np.array_equal(pixels_of(data), plain)


@NATIVE
@pytest.mark.parametrize("which", [0, 1])
def test_layers_in_bytes_and_in_floating_point_work_together(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some layers of a model may have sums that bytes cannot hold."""
    path = Path(__file__).parent / "golden" / "lattice.safetensors"
    picture = Image.radial_gradient("L").resize((70, 50))
    context = "staircase"

    def made() -> bytes:
        monkeypatch.setattr(loading, "_loaded", {})
        out = BytesIO()
        picture.save(out, "LIC", model=path, context=context, quality=6)
        return out.getvalue()

    expected = made()
    real, number = layers._Bytes.of, count(which)
    monkeypatch.setattr(layers._Bytes, "of", lambda *a: real(*a) if next(number) % 2 else None)
    assert made() == expected

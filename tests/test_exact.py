from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from conftest import setting, threads

from pillow_lic.entropy import exact, layers
from pillow_lic.entropy.exact import ExactHyperSynthesis, ExactLayer
from pillow_lic.entropy.layers import interpolate
from pillow_lic.models.hyperprior import SCALES, HyperpriorModel
from pillow_lic.models.loading import load_model
from pillow_lic.models.transforms import Architecture
from pillow_lic.training.export import exact_tensors

CPU = torch.device("cpu")


def symbols_for(network: ExactHyperSynthesis, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (network.z_mean.shape[1], 1, 6, 9)
    return np.rint(rng.normal(size=shape) * 3).astype(np.int16)


def matmul_precision(name: str) -> AbstractContextManager[None]:
    return setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, name)


def default_dtype(dtype: torch.dtype) -> AbstractContextManager[None]:
    return setting(torch.get_default_dtype, torch.set_default_dtype, dtype)


SETTINGS = [
    lambda: threads(1),
    lambda: threads(4),
    lambda: matmul_precision("medium"),
    lambda: default_dtype(torch.bfloat16),
    lambda: torch.autocast("cpu", torch.bfloat16),
]
"""What a caller may have set, and no exact result may depend on."""


@pytest.mark.parametrize(
    "setting",
    [
        *SETTINGS,
        torch.inference_mode,
        torch.no_grad,
    ],
    ids=["1 thread", "4 threads", "medium", "bf16 default", "autocast", "inference", "no_grad"],
)
def test_the_same_numbers_under_any_setting(setting: object) -> None:
    network = load_model("mse").exact
    z = symbols_for(network)
    expected = [t.numpy() for t in network(z, 777)]
    with setting():  # type: ignore[operator]
        found = [t.numpy() for t in network(z, 777)]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def python_layer(layer: ExactLayer, x: np.ndarray, code: int) -> np.ndarray:
    """The layer in Python integers, position by position."""
    channels, height, width = x.shape
    size, reach = layer.size, layer.size // 2
    weight = layer.weight.numpy().astype(int).reshape(-1, channels, size, size)
    bias = interpolate(layer.bias, code)
    out = np.empty((len(weight), height, width), object)
    for o in range(len(weight)):
        for i in range(height):
            for j in range(width):
                total = int(bias[o])
                for c in range(channels):
                    for u in range(size):
                        for v in range(size):
                            a, b = i + u - reach, j + v - reach
                            if 0 <= a < height and 0 <= b < width:
                                total += int(weight[o, c, u, v]) * int(x[c, a, b])
                shift = int(layer.shift[o])
                out[o, i, j] = (total + ((1 << shift) >> 1)) >> shift
    return out


@pytest.mark.parametrize("size", [1, 3])
def test_a_layer_equals_python_integers(size: int) -> None:
    rng = np.random.default_rng(size)
    layer = ExactLayer(
        torch.from_numpy(rng.integers(-8000, 8000, (4, 5 * size * size)).astype(np.float64)),
        rng.integers(-(2**30), 2**30, (8, 4)),
        np.array([0, 1, 9, 20]),
        size,
    )
    x = rng.integers(-32767, 32768, (5, 2, 4, 3))  # two grids, which see nothing of each other
    found = layer(torch.from_numpy(x).double(), 1234).numpy()
    for n in range(2):
        assert np.array_equal(found[:, n].astype(int), python_layer(layer, x[:, n], 1234).astype(int))


def test_interpolation_is_exact_at_the_stops_and_between() -> None:
    table = np.arange(8)[:, None] * 1000 - 3500
    assert [int(interpolate(table, 256 * k)[0]) for k in range(8)] == table[:, 0].tolist()
    assert int(interpolate(table, 128)[0]) == -3000


def test_a_layer_that_could_overflow_is_refused() -> None:
    tensors = {
        "x.weight": torch.full((2, 40000, 1, 1), 32767, dtype=torch.int32),
        "x.bias": torch.full((8, 2), 2**53, dtype=torch.int64),
        "x.shift": torch.tensor([3, 3], dtype=torch.uint8),
    }
    with pytest.raises(ValueError, match="not exact"):
        ExactLayer.load(tensors, "x")


def test_sums_of_the_shipped_model_stay_far_below_the_bound() -> None:
    for layer in load_model("mse").exact.layers.values():
        assert layer.bound() < exact.EXACT / 16


def test_a_planted_inexactness_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above compares real arithmetic: in float32 the same network disagrees."""
    monkeypatch.setattr(layers, "bytes_work", lambda: False)
    network = load_model("mse").exact
    layer = network.layers["fine_1.mix"]
    # Many positions: with weights of eight bits few sums leave float32's 24 bits by enough to show.
    generator = torch.Generator().manual_seed(1)
    shape = (layer.weight.shape[1] // 9, 1, 64, 64)
    x = torch.randint(-32767, 32767, shape, dtype=torch.float64, generator=generator)
    careless = ExactLayer(layer.weight.float(), layer.bias, layer.shift, layer.size)
    assert not torch.equal(careless(x.float(), 0).double(), layer(x, 0).double())


def test_integers_follow_the_float_network() -> None:
    torch.manual_seed(3)
    arch = Architecture(latents=24, hyper_channels=32, hyperlatents=16)
    model = HyperpriorModel(arch)
    with torch.no_grad():
        for p in model.hyper_synthesis.parameters():
            p.add_(0.05 * torch.randn_like(p))
    network = ExactHyperSynthesis(exact_tensors(model), SCALES)
    z = symbols_for(network)
    quality, code = torch.tensor([3.25]), 576
    inverse, z_mean, _ = model.z_prior(quality)
    with torch.no_grad():
        mean, index, _ = model.hyper_synthesis((torch.from_numpy(z[:, 0])[None] + z_mean) * inverse, quality)
    found_mean, found_index, _ = network(z, code)
    error = found_mean[:, 0] / 64 - mean[0]
    assert error.abs().max() < 0.1
    assert error.std() < 0.02 * mean.std()
    assert (found_index[:, 0] - index[0].clamp(0, SCALES - 1)).abs().max() < 1

"""From a trained float network to the model file that ships: half precision, integers, tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from pillow_lic.entropy.exact import (
    ACTIVATION_BITS,
    GAIN_BITS,
    LAYERS,
    MEAN_BITS,
    ExactHyperSynthesis,
)
from pillow_lic.entropy.tables import TOTAL
from pillow_lic.models.hyperprior import (
    INDEX_GAIN,
    SCALE_MIN,
    SCALE_STEP,
    SCALES,
    HyperpriorModel,
    QualityConv,
)
from pillow_lic.models.loading import FORMAT

WEIGHT_BITS = 14
SKIP = 8
"""Tables with a standard deviation below 0.245 are not coded, the best limit by BD-rate (docs/decisions.md)."""

SPREAD = range(-10, 21, 2)
"""Neighbouring rungs of the scale ladder that a fitted table mixes, relative to its own."""


def exact_tensors(model: HyperpriorModel) -> dict[str, Tensor]:
    """The integer hyper-synthesis transform of a trained model, as tensors by name."""
    tensors: dict[str, Tensor] = {}
    network = model.hyper_synthesis
    for name in LAYERS:
        layer = network.get_submodule(name)
        assert isinstance(layer, QualityConv)
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        fraction = torch.full((weight.shape[0],), ACTIVATION_BITS)
        if name == "leave":
            half = weight.shape[0] // 2
            gain = torch.ones(weight.shape[0], dtype=torch.float64)
            gain[half:] = INDEX_GAIN
            weight, bias = weight * gain[:, None, None, None], bias * gain
            fraction[:half], fraction[half:] = MEAN_BITS, 0
        tensors |= {f"{name}.{k}": v for k, v in _integer_layer(weight, bias, fraction).items()}
    tensors["z_inverse_gain"] = _fixed(model.z_inverse_gain.clamp(min=1 / 64), GAIN_BITS)
    tensors["z_mean"] = _fixed(model.z_mean, MEAN_BITS)
    tensors["z_index"] = _fixed(model.z_index * INDEX_GAIN, MEAN_BITS)
    return tensors


def _integer_layer(weight: Tensor, bias: Tensor, fraction: Tensor) -> dict[str, Tensor]:
    """Round a layer: each output channel's largest weight gets ``WEIGHT_BITS`` bits."""
    largest = weight.abs().amax(dim=(1, 2, 3)).clamp(min=2.0**-16)
    scale = WEIGHT_BITS - 1 - torch.floor(torch.log2(largest)).long()
    # The result's fraction may not exceed the sum's, and shifts stay small.
    scale = torch.minimum(scale, torch.full_like(scale, 28))
    power = torch.ldexp(torch.ones_like(largest), scale)
    return {
        "weight": torch.round(weight * power[:, None, None, None]).clamp(-32767, 32767).to(torch.int16),
        "bias": torch.round(bias * power * 2.0**ACTIVATION_BITS).to(torch.int64),
        "shift": (scale + ACTIVATION_BITS - fraction).to(torch.uint8),
    }


def _fixed(values: Tensor, bits: int) -> Tensor:
    return torch.round(values.detach().double() * 2.0**bits).to(torch.int32)


def gaussian_masses(sigma: float, reach: int) -> NDArray[np.float64]:
    """Probabilities of 0, 1, ... ``reach`` under a rounded Gaussian, then of both tails together."""
    edges = (np.arange(reach + 1) + 0.5) / (sigma * math.sqrt(2))
    beyond = np.array([math.erfc(e) for e in edges])  # two-sided: P(|x| > edge)
    return np.concatenate([[1 - beyond[0]], -np.diff(beyond) / 2, [beyond[-1]]])


def sigma_of(index: float) -> float:
    """Standard deviation of a rung of the scale ladder."""
    return SCALE_MIN * math.exp(index * SCALE_STEP)


def make_tables(counts: NDArray[np.int64] | None = None) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Frequencies and lengths of the 64 tables, as :class:`pillow_lic.entropy.tables.Tables` has them.

    Without ``counts`` they are Gaussian.  With the magnitudes that were seen with each table,
    (64, n) and the last column for larger ones, each is the mixture of Gaussians on neighbouring
    rungs that fits them best: predicted scales are never quite right, so what is seen has heavier
    tails.
    """
    frequencies, lengths = [], []
    for index in range(SCALES):
        reach = math.ceil(6 * sigma_of(index)) + 2
        seen = None if counts is None else counts[index]
        masses = _mixture(index, reach, seen)
        frequencies.append(_quantise(masses))
        lengths.append(reach + 2)
    return np.concatenate(frequencies), np.array(lengths, np.int32)


def _mixture(index: int, reach: int, seen: NDArray[np.int64] | None) -> NDArray[np.float64]:
    own = gaussian_masses(sigma_of(index), reach)
    if seen is None or seen.sum() < 1000:
        return own
    parts = np.stack([gaussian_masses(sigma_of(index + d), reach) for d in SPREAD])
    parts = np.maximum(parts, 1e-300)
    data = np.concatenate([seen[: reach + 1], [seen[reach + 1 :].sum()]]).astype(np.float64)
    # The prior: a hundred symbols from the Gaussian itself.
    observed = data + 100 * np.concatenate([own[:1], 2 * own[1:-1], own[-1:]])
    weights = np.full(len(parts), 1 / len(parts))
    for _ in range(300):
        share = weights[:, None] * parts
        share /= share.sum(axis=0)
        weights = share @ observed / observed.sum()
    return np.asarray(weights @ parts)


def _quantise(masses: NDArray[np.float64]) -> NDArray[np.int32]:
    """Integers of at least 1 whose mirrored sum is exactly 2**24; zero takes what rounding leaves."""
    frequencies = np.maximum(1, np.floor(masses * TOTAL)).astype(np.int64)
    frequencies[0] = TOTAL - 2 * frequencies[1:-1].sum() - frequencies[-1]
    if frequencies[0] < 1:
        raise ValueError("a probability table is too wide for its precision")
    out: NDArray[np.int32] = frequencies.astype(np.int32)
    return out


def write_model(
    model: HyperpriorModel, path: Path, tables: tuple[NDArray[np.int32], NDArray[np.int32]], skip: int = SKIP
) -> None:
    """Write the .safetensors file of a trained model."""
    float_parts = ("analysis.", "synthesis.", "hyper_analysis.")
    tensors = {k: v.detach().half() for k, v in model.state_dict().items() if k.startswith(float_parts)}
    tensors |= {k: getattr(model, k).detach().float() for k in ("log_gain", "log_inverse_gain")}
    tensors |= {f"exact.{k}": v for k, v in exact_tensors(model).items()}
    tensors["tables.frequencies"], tensors["tables.lengths"] = map(torch.from_numpy, tables)
    tensors = {k: v.contiguous().cpu() for k, v in tensors.items()}
    ExactHyperSynthesis({k.removeprefix("exact."): v for k, v in tensors.items()}, SCALES)
    about = {"format": FORMAT, "architecture": model.arch.as_dict(), "skip": skip}
    data = save(tensors, metadata={"pillow-lic": json.dumps(about, sort_keys=True)})
    path.write_bytes(data)  # not save_file, which makes files that only their owner can read


def write_manifest(path: Path, values: dict[str, Any]) -> None:
    """Write the manifest that tells people where a model comes from."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def count_magnitudes(passes: Iterable[tuple[NDArray[np.int16], NDArray[np.uint8]]]) -> NDArray[np.int64]:
    """How often each magnitude (columns, the last for larger) was seen with each table (rows)."""
    columns = 512
    counts = np.zeros((SCALES, columns), np.int64)
    for symbols, indices in passes:
        magnitude = np.minimum(np.abs(symbols.astype(np.int64)), columns - 1)
        flat = indices.astype(np.int64) * columns + magnitude
        counts += np.bincount(flat, minlength=SCALES * columns).reshape(SCALES, columns)
    return counts

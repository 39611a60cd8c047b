"""From a trained float network to the model file that ships: half precision, integers, tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from pillow_lic import atomic
from pillow_lic.entropy.context import ExactContext
from pillow_lic.entropy.exact import (
    ACTIVATION_BITS,
    GAIN_BITS,
    LAYERS,
    MEAN_BITS,
    ExactHyperSynthesis,
)
from pillow_lic.entropy.ladder import FRACTION, RECIPROCAL_BITS, SHIFT_BITS, STEP_BITS
from pillow_lic.entropy.units import (
    ACTIVATION_LIMIT,
    EXACT,
    WEIGHT_LIMIT,
)
from pillow_lic.entropy.volume import LAYERS as LAYERS_OF_VOLUME
from pillow_lic.entropy.volume import ExactVolume
from pillow_lic.models.context.network import WINDOWS, ContextModel, QualityLinear, UnitNetwork
from pillow_lic.models.context.schedule import HYPER, units_of
from pillow_lic.models.context.volume import VolumeContext
from pillow_lic.models.hyperprior import INDEX_GAIN, LATTICE, SCALES, SKIP, HyperpriorModel, QualityConv
from pillow_lic.models.loading import FORMAT, VOLUME_SUFFIX, Model
from pillow_lic.training.probabilities import grains, half_steps, make_context_tables, sigma_of
from pillow_lic.training.rounding import Moments, rounded, within

IntegerTables = tuple[NDArray[np.int32], NDArray[np.int32]]

WEIGHT_BITS = 7
"""Of the hyper-synthesis transform's weights, besides the sign: seven more would take twice the products, and save 0.02
% of the rate (docs/decisions.md)."""

FLOAT_PARTS = ("analysis.", "synthesis.", "hyper_analysis.")
"""What stays in floating point, in half precision."""


def exact_tensors(model: HyperpriorModel, moments: Moments | None = None) -> dict[str, Tensor]:
    """The integer hyper-synthesis transform of a trained model, as tensors by name."""
    seen = within(moments or {}, "hyper_synthesis.")
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
        tensors |= {f"{name}.{k}": v for k, v in _integer_layer(weight, bias, fraction, seen.get(name)).items()}
    tensors["z_inverse_gain"] = _fixed(model.z_inverse_gain.clamp(min=1 / 64), GAIN_BITS)
    tensors["z_mean"] = _fixed(model.z_mean, MEAN_BITS)
    tensors["z_index"] = _fixed(model.z_index * INDEX_GAIN, MEAN_BITS)
    return tensors


def _integer_layer(weight: Tensor, bias: Tensor, fraction: Tensor, moment: Tensor | None) -> dict[str, Tensor]:
    """Round a layer: each output channel's largest weight gets ``WEIGHT_BITS`` bits."""
    largest = weight.abs().amax(dim=(1, 2, 3)).clamp(min=2.0**-16)
    scale = WEIGHT_BITS - 1 - torch.floor(torch.log2(largest)).long()
    # The result's fraction may not exceed the sum's, and shifts stay small.
    scale = torch.minimum(scale, torch.full_like(scale, 28))
    power = torch.ldexp(torch.ones_like(largest), scale)
    integers = rounded(weight.flatten(1) * power[:, None], moment, limit=2**WEIGHT_BITS - 1)
    return {
        "weight": integers.view(weight.shape).to(torch.int8),
        "bias": torch.round(bias * power * 2.0**ACTIVATION_BITS).to(torch.int64),
        "shift": (scale + ACTIVATION_BITS - fraction).to(torch.uint8),
    }


def _fixed(values: Tensor, bits: int) -> Tensor:
    return torch.round(values.detach().double() * 2.0**bits).to(torch.int32)


def _ladder(grain: NDArray[np.int32]) -> dict[str, Tensor]:
    sigma = torch.tensor([sigma_of(i) for i in range(SCALES)], dtype=torch.float64)
    return {
        "ladder.reciprocal": torch.round(2.0 ** (FRACTION + RECIPROCAL_BITS) / sigma).to(torch.int32),
        "ladder.scale": torch.round(2.0**STEP_BITS * sigma).to(torch.int32),
        "ladder.grain": torch.from_numpy(grain),
    }


def context_tensors(context: ContextModel, moments: Moments | None = None) -> dict[str, Tensor]:
    """A context model in integers, as tensors by name; without its probability tables."""
    tensors = _ladder(grains())
    for number, network in context.networks.items():
        assert isinstance(network, UnitNetwork)
        parts = _windows({n: getattr(network, n).detach().double() * network.mask for n in WINDOWS})
        seen = within(moments or {}, f"networks.{number}.")
        for name in ("enter", "reduce", "expand", "leave"):
            parts |= _layer(network, name, seen.get(name))
        tensors |= {f"units.{number}.{k}": v for k, v in parts.items()}
    return tensors


def volume_tensors(context: VolumeContext) -> dict[str, Tensor]:
    """The context model over the volume in integers, without its probability tables."""
    tensors = _ladder(grains()) | _windows({n: getattr(context, n).detach().double() for n in WINDOWS})
    for name in LAYERS_OF_VOLUME:
        tensors |= _layer(context, name)
    for name in ("channel", "rung"):
        table = torch.round(getattr(context, name).detach() * 2.0**FRACTION)
        tensors[name] = table.clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT).to(torch.int16)
    return tensors


def _windows(windows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Windows of eight bits, with as many fraction bits as fit the largest weight of any."""
    largest = max(float(w.abs().max()) for w in windows.values())
    bits = min(18, math.floor(math.log2(WEIGHT_LIMIT / max(largest, 1e-9))))
    parts = {n: torch.round(w * 2.0**bits).to(torch.int8) for n, w in windows.items()}
    return parts | {"window_bits": torch.tensor(bits, dtype=torch.int32)}


def _layer(network: nn.Module, name: str, moment: Tensor | None = None) -> dict[str, Tensor]:
    """A context network's layer in integers."""
    layer = network.get_submodule(name)
    assert isinstance(layer, QualityLinear)
    weight, bias = layer.weight.detach().double().flatten(1), layer.bias.detach().double()
    fraction = FRACTION
    if name == "leave":
        fraction = SHIFT_BITS
        gain = torch.ones(len(weight), dtype=torch.float64)
        gain[len(weight) // 2 :] = INDEX_GAIN
        weight, bias = weight * gain[:, None], bias * gain
    return {f"{name}.{k}": v for k, v in _small_layer(weight, bias, fraction, moment).items()}


def _small_layer(weight: Tensor, bias: Tensor, fraction: int, moment: Tensor | None) -> dict[str, Tensor]:
    """Round a layer to weights of at most +-127 whose sums stay exact in float32."""
    largest = weight.abs().amax(dim=1).clamp(min=2.0**-16)
    scale = torch.floor(torch.log2(WEIGHT_LIMIT / largest)).clamp(fraction - FRACTION, 23 - FRACTION + fraction)
    while True:
        power = 2.0**scale
        integers = rounded(weight * power[:, None], moment, WEIGHT_LIMIT)
        offsets = torch.round(bias * power * 2.0**FRACTION)
        shift = scale + FRACTION - fraction
        bound = integers.abs().sum(dim=1) * ACTIVATION_LIMIT + offsets.abs().amax(dim=0) + 2.0**shift
        if bool((bound < EXACT).all()):
            break
        if bool((shift[bound >= EXACT] == 0).any()):
            raise ValueError("a context layer's weights are too large for its exact form")
        scale = torch.where(bound >= EXACT, scale - 1, scale)
    return {"weight": integers.to(torch.int8), "bias": offsets.to(torch.int32), "shift": shift.to(torch.uint8)}


def write_model(
    model: HyperpriorModel,
    path: Path,
    tables: IntegerTables,
    context_tables: Mapping[str, IntegerTables] | None = None,
    lattice_tables: Mapping[str, IntegerTables] | None = None,
    skip: int = SKIP,
    distortion: str = "mse",
    moments: Moments | None = None,
) -> None:
    """Write the .safetensors file of a trained model; contexts and lattices get Gaussian tables if none are given.

    ``context_tables`` are by context; so are ``lattice_tables``, which have those of "none" too.  With ``moments``,
    what integer layers see, their weights are rounded for it.
    """
    tensors = {k: v.detach().half() for k, v in model.state_dict().items() if k.startswith(FLOAT_PARTS)}
    tensors |= {k: getattr(model, k).detach().float() for k in ("log_gain", "log_inverse_gain")}
    tensors |= {f"exact.{k}": v for k, v in exact_tensors(model, moments).items()}
    tensors["tables.frequencies"], tensors["tables.lengths"] = map(torch.from_numpy, tables)
    shapes = {}
    for name, context in model.contexts.items():
        if not isinstance(context, ContextModel):  # the volume, see write_volume
            continue
        parts = context_tensors(context, within(moments or {}, f"contexts.{name}."))
        for kind, given in (("tables", context_tables), ("lattice", lattice_tables)):
            if (kind, name) == ("lattice", HYPER):
                continue  # z is on whole steps
            made = (given or {}).get(name) or make_context_tables()
            parts[f"{kind}.frequencies"], parts[f"{kind}.lengths"] = map(torch.from_numpy, made)
        ExactContext(context.units, parts, SCALES, torch.device("cpu"), context.order.tolist())
        tensors |= {f"context.{name}.{k}": v for k, v in parts.items()}
        shapes[name] = context.shape.as_dict()
    parts = _ladder(half_steps())
    made = (lattice_tables or {}).get("none") or make_context_tables(grain=half_steps())
    parts["lattice.frequencies"], parts["lattice.lengths"] = map(torch.from_numpy, made)
    ExactContext(units_of("none", model.arch.latents), parts, SCALES, torch.device("cpu"))
    tensors |= {f"context.none.{k}": v for k, v in parts.items()}
    tensors = {k: v.contiguous().cpu() for k, v in tensors.items()}
    ExactHyperSynthesis({k.removeprefix("exact."): v for k, v in tensors.items()}, SCALES)
    about = {
        "format": FORMAT,
        "architecture": model.arch.as_dict(),
        "skip": skip,
        "contexts": shapes,
        "lattice": LATTICE,
    }
    about["distortion"] = distortion  # what encoders search by
    data = save(tensors, metadata={"pillow-lic": json.dumps(about, sort_keys=True)})
    # At once: processes that have the old model open go on with it.
    atomic.write(str(path), data)


def write_volume(
    context: VolumeContext, owner: Model, tables: IntegerTables | None = None, lattice: IntegerTables | None = None
) -> None:
    """Write the context model over the volume beside its model's file; Gaussian tables if none are given."""
    tensors = volume_tensors(context)
    for kind, given in (("tables", tables), ("lattice", lattice)):
        made = given or make_context_tables()
        tensors[f"{kind}.frequencies"], tensors[f"{kind}.lengths"] = map(torch.from_numpy, made)
    ExactVolume(owner.arch.latents, tensors, SCALES, torch.device("cpu")).check(owner.arch.hyper_channels)
    data = save({k: v.contiguous().cpu() for k, v in tensors.items()}, metadata={"model": owner.identity.hex()})
    atomic.write(str(owner.path.with_suffix(VOLUME_SUFFIX)), data)


def write_manifest(path: Path, values: dict[str, Any]) -> None:
    """Write the manifest that tells people where a model comes from."""
    atomic.write(str(path), (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))

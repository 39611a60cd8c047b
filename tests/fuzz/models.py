"""Hostile .safetensors files: a right model, or what lies beside it, with tensors, shapes, types, values or its
description changed.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fuzz.cases import noise, scarred
from fuzz.seeds import MODEL
from pillow_lic.models.draft import SUFFIX as DRAFT
from pillow_lic.models.importance import SUFFIX as IMPORTANCE
from pillow_lic.models.importance import ImportanceMap
from pillow_lic.models.loading import VOLUME_SUFFIX, Model, load_model

VALUES: tuple[Any, ...] = (None, -1, 0, 1, 7, 2**40, 1.5, "x", [], [3, 2, 1], {}, True, [1e9, 2])
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8)


@cache
def right_model() -> tuple[dict[str, Tensor], str]:
    """Tensors and description of the golden model."""
    with safe_open(MODEL, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["pillow-lic"]  # noqa: SIM118


@cache
def right_file() -> bytes:
    """The golden model's file."""
    return Path(MODEL).read_bytes()


@cache
def right_parts() -> dict[str, tuple[dict[str, Tensor], str]]:
    """Tensors and owner of each file that may lie beside the golden model, by suffix."""
    model, owner = load_model(MODEL), load_model(MODEL).identity.hex()
    assert isinstance(model, Model)
    with safe_open(model.path.with_suffix(VOLUME_SUFFIX), framework="pt") as file:
        volume = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    torch.manual_seed(1)
    latents = model.arch.latents
    draft = {"weight": torch.randn(48, latents // 2, 3, 3).half(), "bias": torch.randn(48).half()}
    importance = {n: t.detach().half() for n, t in ImportanceMap(latents, 8).state_dict().items()}
    return {VOLUME_SUFFIX: (volume, owner), DRAFT: (draft, owner), IMPORTANCE: (importance, owner)}


def hostile_part(rng: Random) -> tuple[str, bytes]:
    """The suffix and the bytes of a file beside the golden model with one to three tensors wrong."""
    suffix = rng.choice(sorted(right_parts()))
    tensors, owner = right_parts()[suffix]
    tensors = dict(tensors)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change_tensor(tensors, rng.choice(sorted(tensors) or [""]), rng)
    data = save(tensors, {"model": owner} if rng.random() < 0.98 else None)
    return suffix, _scarred_head(data, rng) if rng.random() < 0.1 else data


def hostile_model(rng: Random) -> bytes:
    """A model file with one to three things wrong."""
    tensors, text = right_model()
    tensors, about = dict(tensors), json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.3:
            _change_description(about, rng)
            continue
        name = rng.choice([n for n in tensors if not n.startswith("context.") or ".none" in n or ".stair" in n])
        _change_tensor(tensors, name, rng)
    text = json.dumps(about) if rng.random() < 0.95 else noise(rng).decode("latin-1")
    data = save(tensors, {"pillow-lic": text} if rng.random() < 0.98 else None)
    return _scarred_head(data, rng) if rng.random() < 0.1 else data


def _change_tensor(tensors: dict[str, Tensor], name: str, rng: Random) -> None:
    if name not in tensors:
        return
    match rng.randrange(4):
        case 0:
            del tensors[name]
        case 1:
            tensors[name] = _reshaped(tensors[name], rng)
        case 2:
            tensors[name] = tensors[name].to(rng.choice(DTYPES))
        case _:
            tensors[name] = _other_values(tensors[name], rng)


def _change_description(about: dict[str, Any], rng: Random) -> None:
    part = rng.choice((about, about["architecture"], about["contexts"]))
    if not isinstance(part, dict) or not part:
        return
    key = rng.choice([*part, "unknown"])
    part[key] = rng.choice(VALUES)
    if rng.random() < 0.2:
        del part[key]
    # What the next change of the description looks into is there all the same.
    for name in ("architecture", "contexts"):
        about.setdefault(name, {})


def _reshaped(tensor: Tensor, rng: Random) -> Tensor:
    tensor = tensor[None] if tensor.dim() == 0 else tensor
    flat = tensor.flatten()
    turned = tensor.t() if tensor.dim() == 2 else flat[:1]
    shapes = (flat, flat[:0], flat[: flat.numel() // 2], tensor[None], tensor[:1], turned)
    return rng.choice(shapes).contiguous().clone()


def _other_values(tensor: Tensor, rng: Random) -> Tensor:
    tensor = tensor.clone()
    if not tensor.numel():
        return tensor
    limits = torch.finfo(tensor.dtype) if tensor.is_floating_point() else torch.iinfo(tensor.dtype)
    values = [limits.max, limits.min, 0, 1]
    if tensor.is_floating_point():
        values += [float("nan"), float("inf")]
    if rng.random() < 0.5:
        tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice(values)
    else:
        tensor.fill_(rng.choice(values))
    return tensor


def _scarred_head(data: bytes, rng: Random) -> bytes:
    size = 8 + int.from_bytes(data[:8], "little")
    return scarred(data[:size], rng) + data[size:]

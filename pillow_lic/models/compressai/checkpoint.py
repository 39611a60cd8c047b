"""Reading CompressAI's checkpoints: tensors only, every key accounted for."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pillow_lic.models.compressai.networks import ARCHITECTURES, Network

_DERIVED = re.compile(
    r"(^|\.)(_offset|_quantized_cdf|_cdf_length|target|mask|scale_table|scale_bound"
    r"|((beta|gamma)_reparam\.)?(pedestal|lower_bound\.bound)"
    r"|(lower_bound_scale|likelihood_lower_bound)\.bound)$"
)
"""What CompressAI stores beside the parameters and makes anew from them."""

_NAMES = {"_matrix": "matrices", "_bias": "biases", "_factor": "factors"}
_PEDESTAL = 2.0**-36
_BETA_MIN = 1e-6


def read_checkpoint(path: Path, architecture: str) -> Network:
    """The network of a checkpoint, in float32; ``ValueError`` with the key at fault if it is no such network.

    Checkpoints are state dictionaries, as the published ones, or hold one under ``state_dict``, as those of
    CompressAI's training script.  Nothing but tensors is unpickled.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    state = _without_reparametrisation(_named(_load(path), path))
    problem, network = _fit(state, architecture)
    if network is not None:
        return network.eval().requires_grad_(False)
    others = [name for name in ARCHITECTURES if name != architecture and _fit(state, name)[1] is not None]
    hint = f"; it is one of {others[0]}" if others else ""
    raise ValueError(f"{path} is no checkpoint of {architecture}: {problem}{hint}")


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise ValueError(f"{path} was refused: it holds more than tensors, or is no checkpoint ({reason})") from None
    except (RuntimeError, EOFError, KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is no checkpoint: {error}") from None
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{path} is no checkpoint: it holds no state dictionary")
    return found


def _named(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Parameters by the names of today, finite and in float32."""
    found = {}
    for given, value in state.items():
        key = _today(str(given))
        if _DERIVED.search(key):
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"{path} is no checkpoint of a codec: {given} is no tensor of floating-point numbers")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{path} is damaged: {given} is not finite")
        found[key] = value.detach().float()
    return found


def _today(key: str) -> str:
    """A key as the newest CompressAI writes it."""
    key = key.removeprefix("module.").replace(".downsample.", ".skip.")
    old = re.fullmatch(r"entropy_bottleneck\.(_matrix|_bias|_factor)(\d)", key)
    if old:
        return f"entropy_bottleneck.{_NAMES[old[1]]}.{old[2]}"
    return re.sub(r"^entropy_bottleneck\._(matrices|biases|factors)\.", r"entropy_bottleneck.\1.", key)


def _without_reparametrisation(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """GDN's beta and gamma as they are used: squares of what is trained, above a bound."""
    for key, value in state.items():
        if key.endswith((".beta", ".gamma")):
            bound = (_PEDESTAL + (_BETA_MIN if key.endswith(".beta") else 0.0)) ** 0.5
            state[key] = value.clamp(min=bound).square() - _PEDESTAL
    return state


def _fit(state: Mapping[str, Tensor], architecture: str) -> tuple[str, Network | None]:
    """The network with these parameters, or what is wrong with them."""
    kind = ARCHITECTURES[architecture]
    first, last = ("g_a.0.conv1.weight", "g_a.6.weight") if kind.residual else ("g_a.0.weight", "g_a.6.weight")
    for key in (first, last):
        if key not in state:
            return f"the key {key} is missing", None
        if not state[key].ndim or not 1 <= len(state[key]) <= 2048:
            return f"the key {key} has an impossible shape", None
    with torch.device("meta"):
        network = Network(architecture, len(state[first]), len(state[last]))
    wanted = network.state_dict()
    for key in wanted:
        if key not in state:
            return f"the key {key} is missing", None
    for key, value in state.items():
        if key not in wanted:
            return f"the key {key} does not belong to it", None
        if value.shape != wanted[key].shape:
            return f"the key {key} has the shape {tuple(value.shape)} and not {tuple(wanted[key].shape)}", None
    network.load_state_dict(dict(state), assign=True)
    return "", network

"""Rounding a layer's weights so that what it answers errs little, rather than each weight by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pillow_lic.models.context.network import QualityLinear
from pillow_lic.models.context.schedule import VOLUME
from pillow_lic.models.hyperprior import HyperpriorModel, QualityConv
from pillow_lic.training.losses import Objective, forward

Moments = Mapping[str, Tensor]
"""The mean of x xᵀ over a layer's inputs x, (n, n) float64 for weights (out, n), by the layer's name."""

PARTS = ("hyper_synthesis.", "contexts.")
"""What ships in integers."""

DAMPING = 0.01
"""Of the mean square input, added to each: what few pictures told is not taken for what never happens."""


def rounded(weight: Tensor, moment: Tensor | None, limit: int) -> Tensor:
    """Whole numbers within ±``limit`` for weights (out, n); the nearest, if inputs are not known.

    Otherwise what rounding an input's weights does to the results is made up for by the weights that are rounded after
    them, strong inputs first (Frantar et al., GPTQ, ICLR 2023).
    """
    if moment is None:
        return torch.round(weight).clamp(-limit, limit)
    order = moment.diagonal().argsort(descending=True)
    damped = moment[order][:, order] + (DAMPING * moment.diagonal().mean() + 1e-9) * torch.eye(len(moment))
    remedy = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    rest, found = weight[:, order], torch.empty_like(weight)
    for k, column in enumerate(order.tolist()):
        found[:, column] = torch.round(rest[:, k]).clamp(-limit, limit)
        error = (rest[:, k] - found[:, column]) / remedy[k, k]
        rest[:, k:] -= error[:, None] * remedy[k, k:]
    return found


@torch.no_grad()
def input_moments(model: HyperpriorModel, samples: Iterable[tuple[Tensor, Tensor]]) -> Moments:
    """What the layers that ship in integers see of ``samples``: pixels and qualities as :func:`forward` takes them."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def see(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen = _columns(layer, inputs[0]).double()
        sums[name] = sums.get(name, torch.zeros(())) + seen @ seen.mT
        counts[name] = counts.get(name, 0) + seen.shape[1]

    model.eval()
    # That over the volume takes ten times as long, and is rounded elsewhere.
    objective = Objective(distortion=None, contexts=model.contexts.keys() - {VOLUME})
    hooks = [
        layer.register_forward_pre_hook(partial(see, name))
        for name, layer in model.named_modules()
        if name.startswith(PARTS) and isinstance(layer, QualityConv | QualityLinear)
    ]
    try:
        for pixels, quality in samples:
            forward(model, pixels, quality, objective)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / counts[name] for name, total in sums.items()}


def _columns(layer: nn.Module, x: Tensor) -> Tensor:
    """All that meets a layer's weights (out, n), position by position: (n, P)."""
    if isinstance(layer, QualityLinear):
        return x.flatten(0, 1).mT
    assert isinstance(layer, QualityConv)
    size = layer.weight.shape[-1]
    return F.unfold(x, size, padding=size // 2).transpose(0, 1).flatten(1)


def within(moments: Moments, prefix: str) -> Moments:
    """Those of a part of the model, by their names there."""
    return {name.removeprefix(prefix): moment for name, moment in moments.items() if name.startswith(prefix)}

"""One look at what the decoder makes of the symbols: a Newton step, and the best points near where it leads.

Rounding each latent to what lies nearest ignores what the decoder makes of several together.  The gradient of the
distortion at the rounded latents tells; its curvature hardly depends on the picture.  Decisions symbol by symbol
without the gradient gain nothing: the synthesis has learnt to rebuild rounded latents at their centroids.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pillow_lic.search.relax import Relaxation

LAST_EFFORT = 2
"""Higher ones refine what looks have found."""

CAUTIONS = (1.4, 2.0)
"""How much more than alone symbols are taken to curve the distortion, as all of them move at once; the second where
the first leads nowhere.
"""

TYPICAL = 0.33
"""Root mean square of the steps that looks lead to, at nearly every position where the curvature is as told (MSE)."""

STEEPNESS = (0.1, 5.0)
"""Least and greatest curvature of a position against what is told."""

_INDICES = (10, 14, 18, 22, 28, 48)
_CURVATURES = (5.5, 6.2, 6.9, 7.5, 8.2, 8.7)


def curvature(index: Tensor) -> Tensor:
    """Bits of distortion for a squared step by scale index, measured on validation images.

    At high resolution 6 / ln 2 = 8.66, whatever the quality and the distortion: training has chosen the steps.
    """
    known, values = (torch.tensor(x, dtype=torch.float32, device=index.device) for x in (_INDICES, _CURVATURES))
    place = torch.bucketize(index.float(), known[1:-1])
    share = ((index - known[place]) / (known[place + 1] - known[place])).clamp(0, 1)
    return values[place] + share * (values[place + 1] - values[place])


def look(
    points: Tensor,
    judge: Callable[[Tensor], Tensor],
    quantiser: Relaxation,
    curves: Tensor,
    looks: int,
    position: Tensor | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Better points (n,) than the given ones, or these.

    ``judge`` gives what points cost in bits, distortion and all; its gradient leaves out what each symbol costs by
    itself, which ``quantiser`` knows.  ``curves`` (n,) is the distortion's curvature; where ``position`` (n,) numbers
    the points' positions, only on average, and gradients tell how much it differs there.
    """

    def seen(points: Tensor) -> tuple[Tensor, Tensor, float]:
        leaf = points.clone().requires_grad_(True)
        bits = judge(leaf)
        return leaf, bits, float(bits.detach())

    leaf, bits, least = seen(points)
    for _ in range(looks):
        on_step()
        if leaf.grad is not None:  # the last look led nowhere, and so would this one
            continue
        bits.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        curved = curves if position is None else curves * steepness(leaf.grad / (2 * curves), position)
        for caution in CAUTIONS:
            trial = seen(quantiser.best(leaf.detach() - leaf.grad / (2 * caution * curved), caution * curved))
            if trial[2] < least:
                leaf, bits, least = trial
                break
    return leaf.detach()


def steepness(moves: Tensor, position: Tensor) -> Tensor:
    """How much more than told the distortion curves at the positions of points (n,), from where a look leads them.

    Rounding errors are alike everywhere, so that gradients are as large as the curvature is.  Measures that allow for
    contrast (SSIM) curve several times more in smooth parts of a picture than in rough ones.
    """
    sums = moves.new_zeros(2, int(position.max()) + 1)
    sums = sums.index_add(1, position, torch.stack([moves.square(), torch.ones_like(moves)]))
    least, most = STEEPNESS
    return ((sums[0] / sums[1]).sqrt() / TYPICAL).clamp(least, most)[position]

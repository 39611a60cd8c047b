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
"""Higher ones refine instead."""

CAUTIONS = (1.4, 2.0)
"""How much more than alone symbols are taken to curve the distortion, as all of them move at once; the second where
the first leads nowhere (MS-SSIM).
"""

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
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Better points (n,) than the given ones, or these.

    ``judge`` gives what points cost in bits, distortion and all; its gradient leaves out what each symbol costs by
    itself, which ``quantiser`` knows.  ``curves`` (n,) is the distortion's curvature.
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
        for caution in CAUTIONS:
            trial = seen(quantiser.best(leaf.detach() - leaf.grad / (2 * caution * curves), caution * curves))
            if trial[2] < least:
                leaf, bits, least = trial
                break
    return leaf.detach()

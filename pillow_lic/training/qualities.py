"""What training does for each quality: which ones a batch has, tables by quality, and what these begin with."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pillow_lic.models.hyperprior import INDEX_GAIN, SCALE_MIN, SCALE_STEP, HyperpriorModel
from pillow_lic.models.transforms import QUALITIES


def stratified_qualities(count: int, generator: torch.Generator) -> Tensor:
    """One random quality in each of ``count`` equal parts of 1...8, (count,) float32."""
    u = torch.rand(count, device=generator.device, generator=generator)
    parts = torch.arange(count, device=generator.device) + u
    return 1 + (QUALITIES - 1) * parts / count


def quality_tables(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter that is a table by quality, (8, n)."""
    # By name as well: windows over eight channels have the same shape.
    tables = [p for name, p in model.named_parameters() if name.endswith(("bias", "gain", "z_mean", "z_index"))]
    return [p for p in tables if p.dim() == 2 and p.shape[0] == QUALITIES]


def cubics(count: int) -> Tensor:
    """The projection of ``count`` equidistant values onto polynomials of degree 3, (count, count).

    Each quality's row of a table sees an eighth of the samples.  Left to itself it ends somewhere
    around its best value, and most of all the gains of the lowest frequencies show it.
    """
    powers = torch.linspace(-1, 1, count, dtype=torch.float64)[:, None] ** torch.arange(4)
    projection: Tensor = powers @ torch.linalg.pinv(powers)
    return projection.float()


@torch.no_grad()
def initialise_priors(model: HyperpriorModel, pixels: Tensor) -> None:
    """Set every prior to the statistics of the untrained transforms on some crops.

    Each channel of y starts at its own mean and scale at each quality, each channel of z at a
    deviation of 0.4 (lowest quality) to 2 steps (highest): what is left to learn is how they
    depend on the picture.
    """
    for stop in range(QUALITIES):
        quality = torch.full((pixels.shape[0],), stop + 1.0, device=pixels.device)
        y = model.analysis(pixels, quality) * model.gains(quality)[0]
        mean, spread = y.mean(dim=(0, 2, 3)), y.std(dim=(0, 2, 3))
        # Half the marginal deviation: the typical scale of heavy-tailed coefficients.
        index = (0.5 * spread / SCALE_MIN).log() / SCALE_STEP
        model.hyper_synthesis.leave.bias[stop] = torch.cat([mean, index.clamp(0, 60) / INDEX_GAIN])
        z = model.hyper_analysis(y, quality)
        z_mean, z_spread = z.mean(dim=(0, 2, 3)), z.std(dim=(0, 2, 3))
        deviation = 0.4 * 5 ** (stop / (QUALITIES - 1))
        inverse = (z_spread / deviation).clamp(min=1 / 32)
        model.z_inverse_gain[stop] = inverse
        model.z_mean[stop] = z_mean / inverse
        model.z_index[stop] = math.log(deviation / SCALE_MIN) / SCALE_STEP / INDEX_GAIN

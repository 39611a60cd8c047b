"""The training loss: lambda * squared error + bits per pixel, balanced over the qualities."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pillow_lic.distortions import DISTORTIONS, squared_error
from pillow_lic.models.context.schedule import HYPER
from pillow_lic.models.hyperprior import SKIP, HyperpriorModel, gaussian_bits, scale_of
from pillow_lic.models.transforms import rate_weight
from pillow_lic.training.correlation import correlation_loss
from pillow_lic.training.surrogates import FIRST, lattice_noise, surrogate


@dataclass(frozen=True)
class Objective:
    """What a forward pass computes, and with what in place of rounding.

    quantisation  one of :data:`QUANTISATIONS`; ``progress`` (0...1) hardens "soft-to-hard"
    lattice       this share of the samples is decoded with the errors of a lattice where files have one
    skip          latents with a scale index below it are taken as their means, as in files
    distortion    one of :data:`DISTORTIONS`, or None for no decoding at all
    contexts      which of the model's context models to run; None for all
    window, mask, by_channel
                  of the correlation loss; a window of 0 leaves it out
    """

    quantisation: str = "straight-through"
    progress: float | Tensor = 0.0
    lattice: float = 0.0
    skip: int = 0
    distortion: str | None = "mse"
    contexts: Collection[str] | None = None
    window: int = 0
    mask: str = "point"
    by_channel: bool = False


ROUNDED = Objective()
"""Rate and distortion of rounded latents, skipping nothing."""


@dataclass(frozen=True)
class Outcome:
    """One forward pass, by sample: distortion, squared error on 0...255, bits per pixel of y and of z.

    ``y_bpp`` and ``z_bpp`` are those of context ``none``; ``context_bpp`` has the model's context models of y, by name,
    and ``z_context_bpp`` is what z takes with any of them.
    ``correlation`` is the correlation loss.
    """

    distortion: Tensor
    mse: Tensor
    y_bpp: Tensor
    z_bpp: Tensor
    z_context_bpp: Tensor
    context_bpp: dict[str, Tensor]
    correlation: Tensor

    def bpp(self, shares: Mapping[str, float]) -> Tensor:
        """Bits per pixel, averaged over context models (and "none") with the given shares."""
        rates = {name: y_bpp + self.z_context_bpp for name, y_bpp in self.context_bpp.items()}
        rates["none"] = self.y_bpp + self.z_bpp
        total = sum(shares.values())
        return sum((rates[name] * (share / total) for name, share in shares.items()), torch.zeros_like(self.z_bpp))


def forward(model: HyperpriorModel, pixels: Tensor, quality: Tensor, objective: Objective = ROUNDED) -> Outcome:
    """Run the codec on (B, 3, H, W) pixels in -127.5...127.5, sides multiples of 64."""
    area = pixels.shape[2] * pixels.shape[3]
    kind, progress = objective.quantisation, objective.progress
    y = model.analysis(pixels, quality).float()
    gain, inverse_gain = model.gains(quality)
    y = y * gain
    z_inverse, z_mean, z_index = model.z_prior(quality)
    z = model.hyper_analysis(y, quality).float() / z_inverse - z_mean
    z_for_rate, z_rounded = surrogate(z, kind, progress)
    mean, index, hidden = model.hyper_synthesis((z_rounded + z_mean) * z_inverse, quality)
    mean, index = mean.float(), index.float()
    residual = y - mean
    for_rate, rounded = surrogate(residual, kind, progress)
    if objective.lattice:
        on_lattice = (index.round() >= FIRST) & (torch.rand_like(quality) < objective.lattice)[:, None, None, None]
        rounded = torch.where(on_lattice, lattice_noise(residual), rounded)
    if objective.skip:
        skipped = index.round() < objective.skip
        # Straight through: the value is zero, the gradient the residual's.
        rounded = torch.where(skipped, residual - residual.detach(), rounded)
        for_rate = torch.where(skipped, residual - residual.detach(), for_rate)
    mse = distortion = torch.zeros_like(quality)
    if objective.distortion is not None:
        output = model.synthesis((rounded + mean) * inverse_gain, quality).float()
        with torch.autocast(pixels.device.type, enabled=False):
            mse = squared_error(output, pixels)
            distortion = mse if objective.distortion == "mse" else DISTORTIONS[objective.distortion](output, pixels)
    correlation = torch.zeros_like(quality)
    if objective.window:
        normalised = residual / scale_of(index)
        correlation = correlation_loss(normalised, objective.window, objective.mask, by_channel=objective.by_channel)
    z_index = z_index.expand_as(z)
    z_bpp = z_context_bpp = gaussian_bits(z_for_rate, z_index).sum(dim=(1, 2, 3)) / area
    names = [n for n in model.contexts if n != HYPER and (objective.contexts is None or n in objective.contexts)]
    if names and HYPER in model.contexts:
        nothing = z.new_zeros(len(z), 0, *z.shape[2:])
        z_bits = _context_bits(model.contexts[HYPER], z_for_rate, z_rounded, z_index, nothing, quality)
        z_context_bpp = z_bits / area
    return Outcome(
        distortion=distortion,
        mse=mse,
        y_bpp=gaussian_bits(for_rate, index).sum(dim=(1, 2, 3)) / area,
        z_bpp=z_bpp,
        z_context_bpp=z_context_bpp,
        context_bpp={
            name: _context_bits(model.contexts[name], for_rate, rounded, index, hidden, quality) / area
            for name in names
        },
        correlation=correlation,
    )


def _context_bits(
    context: nn.Module, target: Tensor, rounded: Tensor, index: Tensor, hidden: Tensor, quality: Tensor
) -> Tensor:
    """Bits of latents with probabilities refined by a context model, (B,).

    Files do not code what has a small scale before the context model speaks, whatever it says.
    """
    coded = index.round() >= SKIP
    shift, refined = context(rounded * coded, index, hidden, quality)
    bits = gaussian_bits(target - shift * coded, torch.where(coded, refined, index))
    return bits.sum(dim=(1, 2, 3))


def rate_distortion(
    outcome: Outcome, quality: Tensor, balance: float, shares: Mapping[str, float], correlation: float = 0.0
) -> Tensor:
    """Mean of (lambda * distortion + bpp) / lambda**balance over the batch, bpp averaged over contexts.

    ``correlation`` is the weight of the correlation loss, added as it is.

    Unbalanced, the highest quality's loss is about six times the lowest's and the lowest is
    hardly trained; with 0.4 all are of a size.
    """
    weight = rate_weight(quality).to(outcome.mse.device)
    loss = (weight * outcome.distortion + outcome.bpp(shares)) / weight**balance
    return (loss + correlation * outcome.correlation).mean()

"""The training loss: lambda * squared error + bits per pixel, balanced over the qualities."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pillow_lic.models.hyperprior import SKIP, HyperpriorModel
from pillow_lic.models.transforms import rate_weight
from pillow_lic.training.surrogates import additive_noise, gaussian_bits, straight_through


@dataclass(frozen=True)
class Outcome:
    """One forward pass, by sample: squared error on 0...255, bits per pixel of y and of z.

    ``y_bpp`` is that of context ``none``; ``context_bpp`` has the model's context models, by name.
    """

    mse: Tensor
    y_bpp: Tensor
    z_bpp: Tensor
    context_bpp: dict[str, Tensor]

    def bpp(self, shares: Mapping[str, float]) -> Tensor:
        """Bits per pixel, averaged over context models (and "none") with the given shares."""
        rates = {"none": self.y_bpp, **self.context_bpp}
        total = sum(shares.values())
        return self.z_bpp + sum(rates[name] * (share / total) for name, share in shares.items())


def forward(
    model: HyperpriorModel,
    pixels: Tensor,
    quality: Tensor,
    *,
    noise: bool,
    skip: int = 0,
    decode: bool = True,
    contexts: Collection[str] | None = None,
) -> Outcome:
    """Run the codec on (B, 3, H, W) pixels in -127.5...127.5, sides multiples of 64.

    ``noise`` gives the rate of noisy values and the distortion of rounded ones, as Minnen et al.
    train; without it both belong to rounded values, as in files.  Latents with a scale index
    below ``skip`` are taken as their means, as in files too.  Without ``decode`` the distortion is 0;
    ``contexts`` limits which of the model's context models are run.
    """
    area = pixels.shape[2] * pixels.shape[3]
    y = model.analysis(pixels, quality).float()
    gain, inverse_gain = model.gains(quality)
    y = y * gain
    z_inverse, z_mean, z_index = model.z_prior(quality)
    z = model.hyper_analysis(y, quality).float() / z_inverse - z_mean
    z_hat = (straight_through(z) + z_mean) * z_inverse
    mean, index, hidden = model.hyper_synthesis(z_hat, quality)
    mean, index = mean.float(), index.float()
    residual = y - mean
    symbols = torch.where(index.round() < skip, 0.0, residual.round())
    # Straight through: the value is the symbol's, the gradient the residual's.
    rounded = residual + (symbols - residual).detach()
    mse = torch.zeros_like(quality)
    if decode:
        output = model.synthesis((rounded + mean) * inverse_gain, quality)
        mse = (output.float() - pixels).square().mean(dim=(1, 2, 3))
    target = additive_noise(residual) if noise else rounded
    noisy = additive_noise if noise else straight_through
    return Outcome(
        mse=mse,
        y_bpp=gaussian_bits(target, index).sum(dim=(1, 2, 3)) / area,
        z_bpp=gaussian_bits(noisy(z), z_index.expand_as(z)).sum(dim=(1, 2, 3)) / area,
        context_bpp={
            name: _context_bits(context, target, rounded, index, hidden, quality) / area
            for name, context in model.contexts.items()
            if contexts is None or name in contexts
        },
    )


def _context_bits(
    context: nn.Module, target: Tensor, rounded: Tensor, index: Tensor, hidden: Tensor, quality: Tensor
) -> Tensor:
    """Bits of the latents with probabilities refined by a context model, (B,).

    Files do not code what has a small scale before the context model speaks, whatever it says.
    """
    coded = index.round() >= SKIP
    shift, refined = context(rounded * coded, index, hidden, quality)
    bits = gaussian_bits(target - shift * coded, torch.where(coded, refined, index))
    return bits.sum(dim=(1, 2, 3))


def rate_distortion(outcome: Outcome, quality: Tensor, balance: float, shares: Mapping[str, float]) -> Tensor:
    """Mean of (lambda * MSE + bpp) / lambda**balance over the batch, bpp averaged over contexts.

    Unbalanced, the highest quality's loss is about six times the lowest's and the lowest is
    hardly trained; with 0.4 all are of a size.
    """
    weight = rate_weight(quality).to(outcome.mse.device)
    loss = (weight * outcome.mse + outcome.bpp(shares)) / weight**balance
    return loss.mean()

"""The training loss: lambda * squared error + bits per pixel, balanced over the qualities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pillow_lic.models.hyperprior import HyperpriorModel
from pillow_lic.models.transforms import rate_weight
from pillow_lic.training.surrogates import additive_noise, gaussian_bits, straight_through


@dataclass(frozen=True)
class Outcome:
    """One forward pass, by sample: squared error on 0...255, bits per pixel of y and of z."""

    mse: Tensor
    y_bpp: Tensor
    z_bpp: Tensor


def forward(model: HyperpriorModel, pixels: Tensor, quality: Tensor, *, noise: bool, skip: int = 0) -> Outcome:
    """Run the codec on (B, 3, H, W) pixels in -127.5...127.5, sides multiples of 64.

    ``noise`` gives the rate of noisy values and the distortion of rounded ones, as Minnen et al.
    train; without it both belong to rounded values, as in files.  Latents with a scale index
    below ``skip`` are taken as their means, as in files too.
    """
    area = pixels.shape[2] * pixels.shape[3]
    y = model.analysis(pixels, quality).float()
    gain, inverse_gain = model.gains(quality)
    y = y * gain
    z_inverse, z_mean, z_index = model.z_prior(quality)
    z = model.hyper_analysis(y, quality).float() / z_inverse - z_mean
    z_hat = (straight_through(z) + z_mean) * z_inverse
    mean, index = model.hyper_synthesis(z_hat, quality)
    mean = mean.float()
    residual = y - mean
    symbols = torch.where(index.round() < skip, 0.0, residual.round())
    # Straight through: the value is the symbol's, the gradient the residual's.
    rounded = residual + (symbols - residual).detach()
    output = model.synthesis((rounded + mean) * inverse_gain, quality)
    noisy = additive_noise if noise else straight_through
    return Outcome(
        mse=(output.float() - pixels).square().mean(dim=(1, 2, 3)),
        y_bpp=gaussian_bits(additive_noise(residual) if noise else rounded, index.float()).sum(dim=(1, 2, 3)) / area,
        z_bpp=gaussian_bits(noisy(z), z_index.expand_as(z)).sum(dim=(1, 2, 3)) / area,
    )


def rate_distortion(outcome: Outcome, quality: Tensor, balance: float) -> Tensor:
    """Mean of (lambda * MSE + bpp) / lambda**balance over the batch.

    Unbalanced, the highest quality's loss is about six times the lowest's and the lowest is
    hardly trained; with 0.4 all are of a size.
    """
    weight = rate_weight(quality).to(outcome.mse.device)
    loss = (weight * outcome.mse + outcome.y_bpp + outcome.z_bpp) / weight**balance
    return loss.mean()

"""LVQAC (Zhang and Wu, CVPR 2023) fine-tuned: what its lattice and its companding each gain over plain rounding.

    python examples/companding.py --start runs/joint-5/weights.pt --data DIR --images KODAK --steps 400

Four ways of quantising start from the same weights and train for the same number of steps, all parameters, context
``none``. The diamond lattice chooses between whole and half steps once for all latents of a position, by a softmax
in training. A-law companding spends finer steps near the mean; a small network tells how much at each position,
from what the decoder knows before it reads y. BD-rates are by ideal code length on rounded latents.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

from pillow_lic.bench.metrics import bd_rate
from pillow_lic.distortions import squared_error
from pillow_lic.models.hyperprior import LATTICE, SKIP, HyperpriorModel, gaussian_bits, scale_of
from pillow_lic.models.transforms import rate_weight
from pillow_lic.training.importing import load_state
from pillow_lic.training.loop import Trainer
from pillow_lic.training.recipe import Recipe, Schedule, recipe_from
from pillow_lic.training.surrogates import surrogate
from pillow_lic.training.validate import STOPS, Curve, validation_images

SPAN = 4.0
"""Companding acts within so many standard deviations of the mean; beyond, steps stay as wide as they are there."""

SOFTNESS = 4.0
"""Of the choice between whole and half steps: a softmax of minus so many times the mean squared distance.

The mean, as the sum over a hundred latents is a hard choice nearly everywhere and drowns all other gradients elsewhere.
"""

ARMS = {
    "scalar": (False, False),
    "diamond": (True, False),
    "scalar, companding": (False, True),
    "diamond, companding": (True, True),
}
"""What each way of quantising has of the lattice and of companding."""


def compress(x: Tensor, a: Tensor) -> Tensor:
    """The A-law on -1...1, continued in straight lines; the identity for A = 1."""
    size, bend = x.abs(), 1 + a.log()
    inside = torch.where(size < 1 / a, a * size, 1 + (a * size.clamp(min=1e-9)).log()) / bend
    return torch.where(size < 1, inside, 1 + (size - 1) / bend).copysign(x)


def expand(x: Tensor, a: Tensor) -> Tensor:
    """The inverse of :func:`compress`."""
    size, bend = x.abs(), 1 + a.log()
    inside = torch.where(size * bend < 1, size * bend, ((size * bend).clamp(max=bend) - 1).exp()) / a
    return torch.where(size < 1, inside, 1 + (size - 1) * bend).copysign(x)


def interval_bits(low: Tensor, high: Tensor, scale: Tensor) -> Tensor:
    """Ideal code length of intervals under a Gaussian around 0."""
    flip = low + high < 0
    near, far = torch.where(flip, -high, low), torch.where(flip, -low, high)
    unit = 1 / (scale * 2**0.5)
    mass = 0.5 * (torch.erfc(near * unit) - torch.erfc(far * unit))
    return -torch.log2(mass.clamp(min=1e-9))


def diamond(x: Tensor, wide: Tensor) -> Tensor:
    """Whole or half steps for the wide latents (B, M, h, w) of each position, whichever lie nearer; gradients see a
    softmax over both.
    """
    whole, half = x.round(), torch.where(wide, (x - 0.5).round() + 0.5, x.round())
    count = wide.sum(1, keepdim=True).clamp(min=1)
    distance = torch.stack([((x - p.detach()).square() * wide).sum(1, keepdim=True) / count for p in (whole, half)])
    share = torch.softmax(-SOFTNESS * distance, dim=0)
    straight = [x + (p - x).detach() for p in (whole, half)]
    soft = share[0] * straight[0] + share[1] * straight[1]
    hard = torch.where(distance[0] <= distance[1], whole, half)
    return soft + (hard - soft).detach()


class Codec(nn.Module):
    """A model with one of the ways of quantising: rate and distortion, in training and on rounded latents."""

    def __init__(self, model: HyperpriorModel, on_lattice: bool, companding: bool, balance: float = 0.4) -> None:
        super().__init__()
        self.model, self.on_lattice, self.balance = model, on_lattice, balance
        self.amount: nn.Sequential | None = None
        if companding:
            hidden = model.arch.hyper_channels
            last = nn.Conv2d(32, 1, 1)
            with torch.no_grad():
                last.weight.zero_()
                last.bias = nn.Parameter(torch.tensor([-2.0]))  # A = 1.13: nearly even steps at first
            self.amount = nn.Sequential(nn.Conv2d(hidden, 32, 1), nn.LeakyReLU(0.125), last)

    def forward(self, pixels: Tensor, quality: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch and the figures that a trainer logs."""
        with torch.autocast(pixels.device.type, torch.bfloat16):
            rate, mse = self.measure(pixels, quality)
        weight = rate_weight(quality)
        loss = ((weight * mse + rate) / weight**self.balance).mean()
        return loss, torch.stack([loss, mse.mean(), rate.mean()]).detach()

    def measure(self, pixels: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Bits a pixel and squared error by sample; outside of training of rounded latents, as files have them."""
        model, noisy = self.model, self.training
        gain, inverse_gain = model.gains(quality)
        y = model.analysis(pixels, quality).float() * gain
        z_inverse, z_mean, z_index = model.z_prior(quality)
        z = model.hyper_analysis(y, quality).float() / z_inverse - z_mean
        z_noisy, z_rounded = surrogate(z, "mixed", 0.0)
        mean, index, hidden = model.hyper_synthesis((z_rounded + z_mean) * z_inverse, quality)
        index = index.float()
        with torch.autocast(pixels.device.type, enabled=False):
            steps, bits = self.quantised(y - mean.float(), index, hidden.float())
            z_bits = gaussian_bits(z_noisy if noisy else z_rounded, z_index.expand_as(z)).sum((1, 2, 3))
        output = model.synthesis((steps + mean.float()) * inverse_gain, quality).float()
        return (bits + z_bits) / (pixels.shape[2] * pixels.shape[3]), squared_error(output, pixels)

    def quantised(self, residual: Tensor, index: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What a decoder gets of residuals in steps, and their bits by sample."""
        scale, wide = scale_of(index), index.round() >= LATTICE
        a = None if self.amount is None else 1 + nn.functional.softplus(self.amount(hidden))
        span = SPAN * scale
        x = residual if a is None else span * compress(residual / span, a)
        points = diamond(x, wide) if self.on_lattice else x + (x.round() - x).detach()
        coded = x + torch.empty_like(x).uniform_(-0.5, 0.5) if self.training else points
        low, high = coded - 0.5, coded + 0.5
        if a is not None:
            points, low, high = (span * expand(v / span, a) for v in (points, low, high))
        bits = interval_bits(low, high, scale)
        if not self.training:
            skipped = index.round() < SKIP
            points, bits = (v.masked_fill(skipped, 0) for v in (points, bits))
        total = bits.sum((1, 2, 3))
        if self.on_lattice:
            total = total + wide.any(1).sum((1, 2))  # one bit a position tells whole from half steps
        return points, total


def trained(arm: str, recipe: Recipe, data: Path, start: Path) -> Codec:
    """One way of quantising after its training, with the running average of the weights."""
    trainer = Trainer(recipe, data)
    trainer.start_from(start)
    codec = Codec(trainer.model, *ARMS[arm], recipe.lambda_balance)
    if codec.amount is not None:
        trainer.optimisers.append(torch.optim.Adam(codec.amount.parameters(), lr=2e-3))
        trainer.base_rates.append([2e-3])
    generator = torch.Generator().manual_seed(recipe.seed)
    while trainer.step < recipe.schedule.steps:
        trainer._step(trainer.crops.batch(recipe.batches.batch, generator), generator, codec)
        trainer.step += 1
    codec.model = trainer.averaged_model()
    return codec.eval()


@torch.no_grad()
def curve(codec: Codec, images: list[np.ndarray]) -> Curve:
    """(bits a pixel, PSNR) at the eight qualities, means over images."""
    found = []
    for stop in STOPS:
        points = []
        for pixels in images:
            x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() - 127.5
            rate, mse = codec.measure(x, torch.tensor([float(stop)]))
            points.append((float(rate), 10 * float(torch.log10(255**2 / mse))))
        found.append((fmean(r for r, _ in points), fmean(p for _, p in points)))
    return found


def main() -> None:
    """Print a line for each way of quantising."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True, help="weights.pt of a finished joint stage")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="only so many of the images")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pace", type=float, default=0.1, help="learning rates, relative to the first weights' own")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    saved = recipe_from(load_state(given.start, "cpu", "recipe")["recipe"])
    schedule = Schedule(steps=given.steps, warmup_steps=min(20, given.steps), hold=0.3, final=0.01)
    slower = replace(saved.optimiser, muon=saved.optimiser.muon * given.pace, adam=saved.optimiser.adam * given.pace)
    recipe = replace(saved, schedule=schedule, optimiser=slower, rate={"none": 1.0}, contexts={}, seed=11)
    images = validation_images(given.images, given.limit)
    anchor: Curve = []
    for arm in ARMS:
        found = curve(trained(arm, recipe, given.data, given.start), images)
        anchor = anchor or found
        high = bd_rate(anchor[2:], found[2:])
        print(f"{arm:22} BD-rate {bd_rate(anchor, found):+6.2f} %  from quality 3 {high:+6.2f} %", flush=True)


if __name__ == "__main__":
    main()

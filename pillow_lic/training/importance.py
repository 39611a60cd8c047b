"""Trains an importance map for a finished model, whose transforms and hyperprior stay as they are.

python -m pillow_lic.training.importance MODEL.safetensors IMAGES [MINUTES]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pillow_lic.devices import block_dtype
from pillow_lic.distortions import ssim_map
from pillow_lic.models.hyperprior import SCALE_STEP, SKIP, HyperpriorModel, gaussian_bits
from pillow_lic.models.importance import ImportanceMap
from pillow_lic.models.loading import Model, load_model
from pillow_lic.models.transforms import QUALITIES, at_quality
from pillow_lic.quantizers.adaptive import BLOCK
from pillow_lic.training.data import Crops
from pillow_lic.training.importing import weights_of
from pillow_lic.training.qualities import cubics, stratified_qualities
from pillow_lic.training.surrogates import straight_through

SIZE, BATCH = 256, 4
LEARNING_RATE = 3e-3
PROBE, PROBE_BATCHES = 2.0, 4
"""Levels and batches that tell what dissimilarity costs."""


def adapted(
    model: HyperpriorModel, map_of: Callable[[Tensor, Tensor], Tensor], pixels: Tensor, quality: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Levels, dissimilarity (1 - SSIM) and bits a pixel of crops (B, 3, H, W) with the levels of a map."""
    with torch.no_grad():
        y = model.analysis(pixels, quality).float()
        gain, inverse_gain = model.gains(quality)
        y = y * gain
        z_inverse, z_mean, _ = model.z_prior(quality)
        z = (model.hyper_analysis(y, quality).float() / z_inverse - z_mean).round()
        mean, index, _ = (t.float() for t in model.hyper_synthesis((z + z_mean) * z_inverse, quality))
    levels = map_of(y, quality)
    spread = straight_through(levels).repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)[:, None]
    finer, index = torch.exp(spread * SCALE_STEP), index + spread
    residual = (y - mean) * finer
    rounded = torch.where(index.round() < SKIP, 0, straight_through(residual))
    bits = gaussian_bits(rounded, index).sum(dim=(1, 2, 3)) / (pixels.shape[2] * pixels.shape[3])
    shown = model.synthesis((rounded / finer + mean) * inverse_gain, quality).float()
    with torch.autocast(pixels.device.type, enabled=False):  # variances are small differences of large means
        similarity = ssim_map(shown, pixels).mean(dim=(1, 2, 3))
    return levels, 1 - similarity, bits


def even_map(level: float, y: Tensor, quality: Tensor) -> Tensor:
    """The same level everywhere."""
    return y.new_full((y.shape[0], y.shape[2] // BLOCK, y.shape[3] // BLOCK), level)


@torch.no_grad()
def fair_prices(model: HyperpriorModel, crops: Crops, generator: torch.Generator) -> Tensor:
    """Bits a pixel for each unit of dissimilarity that a change of level everywhere gives, (8, 1)."""
    prices = []
    for stop in range(QUALITIES):
        quality = torch.full((BATCH,), stop + 1.0)
        change = torch.zeros(2)
        for _ in range(PROBE_BATCHES):
            pixels = crops.batch(BATCH, generator).to(memory_format=torch.channels_last)
            for level in (-PROBE, PROBE):
                _, lost, bits = adapted(model, partial(even_map, level), pixels, quality)
                change += torch.stack([lost.mean(), bits.mean()]) * level
        prices.append(-change[1] / change[0])
    return torch.exp(cubics(QUALITIES) @ torch.stack(prices).log()[:, None])


def train_importance(model: Path, data: str | Path, minutes: float) -> ImportanceMap:
    """Minimise price * dissimilarity + bits, at prices at which no level is better than another on the whole."""
    owner = load_model(str(model))
    if not isinstance(owner, Model):
        raise ValueError(f"{model} is a published codec's, which has no levels of quality")
    frozen = HyperpriorModel(owner.arch)
    state = weights_of(owner.path)["average"]
    frozen.load_state_dict({k: v for k, v in state.items() if not k.startswith("contexts.")})
    frozen.eval().requires_grad_(False)
    torch.manual_seed(1)
    network = ImportanceMap(owner.arch.latents)
    adam = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    crops, generator = Crops(data, SIZE, torch.device("cpu")), torch.Generator().manual_seed(1)
    prices = fair_prices(frozen, crops, generator)
    low = block_dtype(torch.device("cpu")) is torch.bfloat16
    started = time.monotonic()
    step = 0
    while (done := (time.monotonic() - started) / (60 * minutes)) < 1:
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, 2 * (1 - done))
        pixels = crops.batch(BATCH, generator).to(memory_format=torch.channels_last)
        quality = stratified_qualities(BATCH, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            levels, dissimilarity, bits = adapted(frozen, network, pixels, quality)
        price = at_quality(prices, quality)[:, 0]
        loss = ((price * dissimilarity + bits) / price.sqrt()).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        step += 1
        if step % 20 == 0:
            told = (levels.std(), levels.mean(), dissimilarity.mean(), bits.mean())
            print(step, *(f"{float(x.detach()):.4f}" for x in told), file=sys.stderr, flush=True)
    return network


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images")
    parser.add_argument("minutes", type=float, nargs="?", default=8.0)
    args = parser.parse_args()
    try:
        if not args.minutes > 0:
            raise ValueError(f"minutes must be above 0, not {args.minutes:g}")
        found = train_importance(args.model, args.images, args.minutes)
        model = load_model(str(args.model))
        found.save(model.path, model.identity)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")

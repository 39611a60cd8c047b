"""What a network achieves on a folder of images, and what its conversion to integers costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pillow_lic.bench.codecs import JPEG, decode
from pillow_lic.bench.metrics import psnr
from pillow_lic.entropy.exact import MEAN_BITS, ExactHyperSynthesis
from pillow_lic.entropy.tables import Tables
from pillow_lic.header import QUALITY_ONE
from pillow_lic.models.hyperprior import HyperpriorModel
from pillow_lic.models.transforms import QUALITIES
from pillow_lic.pictures import image_files, load_rgb
from pillow_lic.pixels import Pixels
from pillow_lic.quantizers import scalar
from pillow_lic.training.losses import Objective, forward
from pillow_lic.training.probabilities import make_tables

Curve = list[tuple[float, float]]

STOPS = tuple(range(1, QUALITIES + 1))
SIDE_UNIT = 64


def validation_images(folder: str | Path, limit: int | None = None) -> list[Pixels]:
    """Images of a folder, cut to sides that are multiples of 64, which the estimate needs; ``ValueError`` if there are
    none as large.
    """
    found = []
    for file in image_files(folder)[:limit]:
        if (pixels := cut(load_rgb(file))).size:
            found.append(pixels)
    if not found:
        raise ValueError(f"no image in {folder} has {SIDE_UNIT} pixels on its smaller side")
    return found


def cut(pixels: Pixels) -> Pixels:
    """As much of a picture as has sides that are multiples of 64, as the networks take them; may be nothing."""
    h, w = (n // SIDE_UNIT * SIDE_UNIT for n in pixels.shape[:2])
    return pixels[:h, :w]


def tensor_of(pixels: Pixels) -> Tensor:
    """(H, W, 3) bytes as the networks take them: (1, 3, H, W) in -127.5...127.5."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() - 127.5


@torch.no_grad()
def estimated_curve(model: HyperpriorModel, images: Sequence[Pixels], context: str = "none") -> Curve:
    """(bpp by ideal code length, PSNR) at the eight stops, means over images.

    Pixels are neither rounded nor cut at black and white: at 44 dB files have 0.1 dB less.
    """
    model.eval()
    device = next(model.parameters()).device
    curve = []
    for stop in STOPS:
        rates, distortions = [], []
        for pixels in images:
            x = tensor_of(pixels).to(device)
            outcome = forward(model, x, torch.tensor([float(stop)], device=device), Objective(contexts={context}))
            rates.append(float(outcome.bpp({context: 1.0})))
            distortions.append(10 * float(torch.log10(255**2 / outcome.mse)))
        curve.append((fmean(rates), fmean(distortions)))
    return curve


def jpeg_curve(images: Sequence[Pixels]) -> Curve:
    """The same for JPEG, from real files: the anchor that is quick to make anywhere."""
    curve = []
    for setting in JPEG.values:
        rates, distortions = [], []
        for pixels in images:
            data = JPEG.encode(Image.fromarray(pixels), setting)
            rates.append(8 * len(data) / (pixels.shape[0] * pixels.shape[1]))
            distortions.append(psnr(pixels, np.asarray(decode(data))))
        curve.append((fmean(rates), fmean(distortions)))
    return curve


@torch.no_grad()
def conversion_cost(model: HyperpriorModel, exact: ExactHyperSynthesis, images: Sequence[Pixels]) -> float:
    """How much longer, in %, ideal codes get when h_s computes in integers, ``exact``, with tables.

    Latents are the same on both sides; nothing is skipped and the tables are Gaussian, so that
    the difference is what rounding weights, means and scales costs, and nothing else.
    """
    model.eval()
    tables = Tables.mirrored(*make_tables(), skip=0)
    bits_float = bits_integer = 0.0
    for pixels in images:
        for stop in STOPS:
            one, other = _bits(model, exact, tables, pixels, stop)
            bits_float, bits_integer = bits_float + one, bits_integer + other
    return 100 * (bits_integer / bits_float - 1)


def _bits(
    model: HyperpriorModel, exact: ExactHyperSynthesis, tables: Tables, pixels: Pixels, stop: int
) -> tuple[float, float]:
    """Bits of y and z with the float network and with the integer one."""
    x = tensor_of(pixels)
    quality, code = torch.tensor([float(stop)]), (stop - 1) * QUALITY_ONE
    outcome = forward(model, x, quality)
    in_float = float(outcome.y_bpp + outcome.z_bpp) * x.shape[2] * x.shape[3]
    y = model.analysis(x, quality) * model.gains(quality)[0]
    inverse, z_mean, _ = model.z_prior(quality)
    z = (model.hyper_analysis(y, quality) / inverse - z_mean).round()[0].numpy().astype(np.int16)
    z_index = np.broadcast_to(exact.z_prior(code)[2][:, None, None], z.shape)
    mean, index = (found[:, 0] for found in exact(z[:, None], code)[:2])
    symbols = scalar.quantise(y[0] - mean / 2**MEAN_BITS, index, skip=0).numpy()
    total = tables.bits(z, z_index).sum() + tables.bits(symbols, index.numpy()).sum()
    return in_float, float(total)


def crops_for_tables(folder: str | Path, count: int, seed: int = 0) -> Iterator[tuple[Pixels, float]]:
    """Images drawn at random, for qualities from 1 to 8 in turn, to see what symbols tables meet."""
    rng = np.random.default_rng(seed)
    files = image_files(folder)
    for n in range(count):
        pixels = load_rgb(files[int(rng.integers(len(files)))])[:512, :512]
        yield pixels, 1 + (QUALITIES - 1) * (n + float(rng.random())) / count

"""Fits what makes pictures at 1/4 and 1/8 to a finished model, by least squares; the model stays as it is.

python -m pillow_lic.training.draft MODEL.safetensors IMAGES
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pillow_lic import codec
from pillow_lic.codec.decoding import tile_latents
from pillow_lic.container import Reader
from pillow_lic.models.draft import CHANNELS, FITTED_SCALE, SIZE, Draft
from pillow_lic.models.loading import Model, load_model
from pillow_lic.models.transforms import LATENT_STRIDE
from pillow_lic.options import EncoderOptions, quality_of
from pillow_lic.pixels import Pixels, tiles_of
from pillow_lic.training.validate import crops_for_tables

IMAGES = 100
RIDGE = 1e-4


def fit_draft(model: Model, data: str | Path, images: int = IMAGES) -> Draft:
    """The convolution nearest to what the synthesis transform shows of coded images at all qualities."""
    channels = min(CHANNELS, model.arch.latents)
    inputs = channels * SIZE**2 + 1
    gram = torch.zeros(inputs, inputs, dtype=torch.float64)
    wanted = torch.zeros(inputs, 3 * (LATENT_STRIDE // FITTED_SCALE) ** 2, dtype=torch.float64)
    for pixels, quality in crops_for_tables(data, images):
        seen, shown = _example(model, pixels, quality, channels)
        gram += seen.T @ seen
        wanted += seen.T @ shown
    gram += torch.eye(inputs, dtype=torch.float64) * RIDGE * gram.diag().mean()
    solved = torch.linalg.solve(gram, wanted).float()
    return Draft(solved[:-1].T.reshape(-1, channels, SIZE, SIZE).contiguous(), solved[-1].contiguous())


@torch.inference_mode()
def _example(model: Model, pixels: Pixels, quality: float, channels: int) -> tuple[Tensor, Tensor]:
    """Windows of latents of a coded image (positions, inputs), and its pixels at 1/4 (positions, outputs)."""
    cpu = torch.device("cpu")
    data = codec.encode(pixels, EncoderOptions(quality=quality, model=str(model.path), tile=0, device="cpu"))
    reader = Reader(BytesIO(data))
    reader.metadata()
    header, (coded,) = reader.header, reader.frame(0).tiles
    (place,) = tiles_of(header.width, header.height, header.tile)
    y, seen = (tile_latents(model, header, [(place, coded)], cpu, read)[0][None] for read in (None, channels))
    shown = model.synthesis(cpu, torch.float32)(y, torch.tensor([quality_of(header.quality_code)]), FITTED_SCALE)
    windows = F.unfold(seen[:, :channels], SIZE, padding=SIZE // 2)[0].T
    inputs = torch.cat([windows, torch.ones(len(windows), 1)], dim=1)
    return inputs.double(), F.pixel_unshuffle(shown, LATENT_STRIDE // FITTED_SCALE)[0].flatten(1).T.double()


def write_draft(path: Path, data: str | Path) -> None:
    """Fit a draft to the model of a file, and write it beside that."""
    model = load_model(str(path))
    if not isinstance(model, Model):
        raise ValueError(f"{path} holds a family of models, which have no drafts")
    fit_draft(model, data).save(model.path, model.identity)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images")
    args = parser.parse_args()
    try:
        write_draft(args.model, args.images)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")

"""Levels of quality from the picture itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pillow_lic import options
from pillow_lic.codec.analysis import Part, analysed
from pillow_lic.codec.common import crop
from pillow_lic.devices import block_dtype
from pillow_lic.distortions import ssim_map
from pillow_lic.header import Header
from pillow_lic.models.loading import Model
from pillow_lic.models.transforms import LATENT_STRIDE
from pillow_lic.pixels import Pixels, latent_size
from pillow_lic.quantizers import adaptive, scalar
from pillow_lic.search.costs import Costs, cost_table
from pillow_lic.search.even import BLOCKS, even_levels
from pillow_lic.symbols import quality_tensor, with_residual

PROBES = (-8, -4, 0, 4, 8)
"""Levels that are tried on the whole picture; what others would do is interpolated."""

LUMA = (0.299, 0.587, 0.114)


def chosen_levels(model: Model, array: Pixels, header: Header, device: torch.device) -> adaptive.Levels:
    """Levels of a picture that make its quality even at the size that the header's quality gives it."""
    h, w = latent_size(header.height), latent_size(header.width)
    rows, columns = -(-h // adaptive.BLOCK), -(-w // adaptive.BLOCK)
    similarity = np.ones((len(PROBES), BLOCKS * rows, BLOCKS * columns), np.float32)
    bits = np.zeros((len(PROBES), rows * adaptive.BLOCK, columns * adaptive.BLOCK))
    plain = replace(header, quantizer="scalar", adaptive=False)
    for part in analysed(model, array, plain, device, searching=True):
        here = np.s_[:, part.place.top : part.place.bottom, part.place.left : part.place.right]
        fine = np.s_[:, 2 * part.place.top : 2 * part.place.bottom, 2 * part.place.left : 2 * part.place.right]
        similarity[fine], bits[here] = _probed(model, part, header, device)
    blocks = bits.reshape(len(PROBES), rows, adaptive.BLOCK, columns, adaptive.BLOCK).sum(axis=(2, 4))
    return even_levels(PROBES, similarity, blocks, (-(-header.height // 8), -(-header.width // 8)))


def important_levels(model: Model, array: Pixels, header: Header, device: torch.device) -> adaptive.Levels:
    """Levels of a picture as the model's importance map sees it; ``ValueError`` if it has none."""
    h, w = latent_size(header.height), latent_size(header.width)
    found = np.zeros((-(-h // adaptive.BLOCK), -(-w // adaptive.BLOCK)), np.int8)
    network, quality = model.importance(device), quality_tensor(header.quality_code, device)
    plain = replace(header, quantizer="scalar", adaptive=False)
    for part in analysed(model, array, plain, device):
        levels = network(crop(part.y, part.place, part.around).float(), quality)[0].round()
        adaptive.of_tile(found, part.place)[:] = levels.cpu().numpy().astype(np.int8)
    return found


def _probed(
    model: Model, part: Part, header: Header, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """SSIM of a tile's 8x8 blocks (probes, 2 h, 2 w) and bits of its positions (probes, h, w) at each probe."""
    y = crop(part.y, part.place, part.around)
    gain = model.inverse_gain(options.quality_of(header.quality_code)).to(device)
    near = part.place.grown(model.arch.synthesis_margin, latent_size(header.height), latent_size(header.width))
    latents, pixels = (crop(x, near, part.around, n) for x, n in ((part.y * gain, 1), (part.pixels, LATENT_STRIDE)))
    latents = latents.clone()
    own = crop(latents, part.place, near)
    network, quality = model.synthesis(device, block_dtype(device)), quality_tensor(header.quality_code, device)
    blocks = [-(-n // adaptive.BLOCK) for n in y.shape[2:]]
    similarity, bits = [], []
    for level in PROBES:
        levels = np.full(blocks, level, np.int8)
        priors = part.coded.priors.adapted(levels, len(model.tables))
        assert priors.factor is not None
        tile = replace(part.coded, priors=priors)
        tile = with_residual(model, tile, y[0] * priors.factor - scalar.dequantise(torch.zeros_like(y[0]), priors.mean))
        symbols = torch.from_numpy(tile.y).to(device)
        own[:] = scalar.dequantise(symbols, priors.mean)[None] * (gain / priors.factor)
        # As it will be seen: with its neighbours, which have no symbols yet.
        seen = torch.from_numpy(_similarity(network(latents, quality).float(), pixels))
        similarity.append(crop(seen[None, None], part.place, near, 2)[0, 0].numpy())
        row, zero = priors.index.long(), torch.zeros_like(y[0])
        cost = Costs(cost_table(model.tables, device), row, zero, zero + 1).of(symbols.float())
        bits.append(torch.where(row < model.tables.skip, 0, cost).sum(dim=0).cpu().numpy())
    return np.stack(similarity), np.stack(bits)


def _similarity(shown: Tensor, pixels: Tensor) -> NDArray[np.float32]:
    """SSIM of luma, the mean of each 8x8 pixels."""
    weights = torch.tensor(LUMA, dtype=torch.float32, device=pixels.device)[None, :, None, None]
    one, other = ((x * weights).sum(dim=1, keepdim=True) for x in (shown.clamp(-127.5, 127.5), pixels))
    found: NDArray[np.float32] = F.avg_pool2d(ssim_map(one, other), 8)[0, 0].cpu().numpy()
    return found

"""An encoder's search for one tile: hyperlatents first, then the symbols of y."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor

from pillow_lic import options
from pillow_lic.codec.analysis import Part
from pillow_lic.codec.common import crop, report
from pillow_lic.devices import block_dtype
from pillow_lic.entropy.exact import MEAN_BITS
from pillow_lic.header import Header
from pillow_lic.models.loading import Model
from pillow_lic.models.transforms import LATENT_STRIDE, rate_weight
from pillow_lic.pixels import latent_size
from pillow_lic.search.hyper import HYPER_STEPS, better_z
from pillow_lic.search.tile import cost_of, improve
from pillow_lic.search.view import TileView
from pillow_lic.symbols import CodedTile, hyper_steps, quality_tensor, with_hyper


def searched(
    model: Model,
    part: Part,
    header: Header,
    contexts: Sequence[str],
    search: tuple[int, str | None],
    progress: tuple[int, int],
) -> CodedTile:
    """The tile with better symbols, or as it is if none are found.

    ``search`` is the effort and the measure, ``progress`` steps done and in all.
    """
    effort, measure = search
    device = part.y.device
    # Tensors made in inference mode have no gradients, copies of them do.
    with torch.inference_mode(False), torch.enable_grad():
        view_of = _viewer(model, part, header, measure or model.distortion)
        tile, view = part.coded, view_of(part.coded)
        if not view.measurable or not bool(view.coded.any()):
            return tile
        done = count(progress[0] + 1)

        def on_step() -> None:
            report(next(done), progress[1])

        y = crop(part.y, part.place, part.around).clone()
        if HYPER_STEPS[effort]:
            start = hyper_steps(model, y, header.quality_code, quality_tensor(header.quality_code, device))
            z = better_z(model, y, start, tile, contexts[-1], HYPER_STEPS[effort], on_step)
            other = with_hyper(model, z, y, header.quality_code, header.quantizer, tile.levels)
            both = ((tile, view), (other, view_of(other)))
            tile, view = min(both, key=lambda one: cost_of(model, one[0], one[1], contexts))
            if not bool(view.coded.any()):
                return tile
        residual = y[0] * (1 if view.factor is None else view.factor) - view.mean
        return improve(model, tile, residual, view, contexts, effort, on_step)


def _viewer(model: Model, part: Part, header: Header, measure: str) -> Callable[[CodedTile], TileView]:
    """Tells for a tile's symbols of z how the decoder will show those of y."""
    device = part.y.device
    h, w = latent_size(header.height), latent_size(header.width)
    near = part.place.grown(model.arch.synthesis_margin, h, w)
    pixels = crop(part.pixels, near, part.around, LATENT_STRIDE)
    inside = header.height - LATENT_STRIDE * near.top, header.width - LATENT_STRIDE * near.left
    pixels = pixels[:, :, : inside[0], : inside[1]].clone()  # what is repeated past the edge nobody sees
    around = crop(part.y, near, part.around).clone()
    network, quality = model.synthesis(device, block_dtype(device)), quality_tensor(header.quality_code, device)

    def synthesis(latents: Tensor) -> Tensor:
        return network(latents, quality)  # type: ignore[no-any-return]

    def view_of(tile: CodedTile) -> TileView:
        priors = tile.priors
        return TileView(
            synthesis=synthesis,
            pixels=pixels,
            around=around,
            top=part.place.top - near.top,
            left=part.place.left - near.left,
            mean=priors.mean.to(torch.float32) / 2**MEAN_BITS,
            coded=(priors.index >= model.tables.skip).clone(),
            inverse_gain=model.inverse_gain(options.quality_of(header.quality_code)).to(device),
            weight=float(rate_weight(quality)),
            measure=measure,
            factor=None if priors.factor is None else priors.factor.clone(),
            fineness=None if priors.fineness is None else priors.fineness.clone(),
            grey=header.mode.startswith("L"),
        )

    return view_of

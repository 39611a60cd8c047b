"""Better symbols for one tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pillow_lic.devices import quiet
from pillow_lic.entropy.ladder import HALF
from pillow_lic.models.loading import Model
from pillow_lic.quantizers.diamond import Diamond
from pillow_lic.quantizers.lattice import Lattice
from pillow_lic.search.costs import Costs, cost_table
from pillow_lic.search.influence import influence, slope
from pillow_lic.search.look import LAST_EFFORT, curvature, look
from pillow_lic.search.refine import STEPS, refine
from pillow_lic.search.relax import DiamondChoice, LatticeChoice, Relaxation, Rounding
from pillow_lic.search.view import TileView
from pillow_lic.symbols import CodedTile, given, pack, with_residual

RATES = (0.03, 0.012)
"""Learning rates in steps for rounding and for the lattice, best by BD-rate for 4 to 300 steps."""

LOOKED = 0.25
"""How far a search by steps begins from the latents towards what the looks have found."""


def improve(
    model: Model,
    tile: CodedTile,
    start: Tensor,
    view: TileView,
    contexts: Sequence[str],
    effort: int,
    on_step: Callable[[], None],
) -> CodedTile:
    """The tile with symbols that look better or cost less, or as it is if none are found.

    ``start`` (M, h, w) are the steps from means to latents.  The last of ``contexts`` tells during the search what
    coding costs, and from effort 2 on what symbols do to the costs of others; from effort 3 on the best of what was
    found, coded with the best of them, tells in the end.
    """
    context = contexts[-1]

    def quantised(values: Tensor) -> CodedTile:
        return with_residual(model, tile, torch.zeros_like(start).masked_scatter(view.coded, values))

    quantiser = _relaxation(model, tile, context, view.coded)
    others = influence(model, tile, context, view.coded) if effort > 1 else None

    points = _points(tile, view)
    push = torch.zeros_like(points) if others is None else slope(others, points)

    def judge(points: Tensor) -> Tensor:
        return view.distortion(points) + quantiser.bits(points.detach()) + (push * points).sum()

    looks = STEPS[min(effort, LAST_EFFORT)]
    position = _positions(view.coded) if view.measure == "ms-ssim" else None
    looked = quantised(look(points, judge, quantiser, _curves(tile, view), looks, position, on_step))
    if effort <= LAST_EFFORT:
        return looked

    def relaxation(values: Tensor) -> Relaxation:
        return _relaxation(model, quantised(values), context, view.coded)

    rate = RATES[tile.lattice is not None]
    begin = torch.lerp(start[view.coded], _points(looked, view), LOOKED)
    values = refine(begin, view.distortion, relaxation, STEPS[effort] - looks, rate, others, on_step)
    return min((quantised(values), looked, tile), key=lambda one: cost_of(model, one, view, contexts))


def cost_of(model: Model, tile: CodedTile, view: TileView, contexts: Sequence[str]) -> float:
    """lambda D + R of a tile in bits, with the best of the contexts."""
    bits = 8 * min(len(pack(model, tile, name)) for name in contexts)
    with torch.no_grad():
        return float(view.distortion(_points(tile, view))) + bits


def _points(tile: CodedTile, view: TileView) -> Tensor:
    """The points of a tile's coded latents, (n,)."""
    return torch.from_numpy(tile.steps).to(view.coded.device)[view.coded]


def _curves(tile: CodedTile, view: TileView) -> Tensor:
    """The curvature of the coded latents, (n,); wider steps curve more, unless less is asked for there."""
    # Where steps are finer errors count for more: a step of one's own curves as nominal ones do.
    curves = curvature((tile.priors.index - tile.priors.level)[view.coded].float())
    if view.factor is not None:
        wider = (1 if view.fineness is None else view.fineness) / view.factor
        curves = curves * wider.square().expand_as(view.mean)[view.coded]
    return curves


def _positions(coded: Tensor) -> Tensor:
    """Which position each of the coded latents (M, h, w) has, (n,)."""
    return coded.flatten(1).nonzero()[:, 1]


def _relaxation(model: Model, tile: CodedTile, context: str, coded: Tensor) -> Relaxation:
    """The tile's quantiser, with what coding costs around its symbols."""
    device = coded.device
    if context == "none" and tile.lattice is None:
        row = tile.priors.index[coded].long()
        zero = torch.zeros(row.shape, dtype=torch.float32, device=device)
        return Rounding(Costs(cost_table(model.tables, device), row, zero, zero + 1))
    network = model.context(context, device)
    known = given(model, tile)
    with quiet(device):
        found = network.conditions(tile.y, known)
    asked = coded.cpu().numpy()
    scale, offset = (x[asked] for x in found)
    tables = network.tables_for(tile.lattice)
    if tile.lattice is not None:  # as they are, and half a step above their symbols
        scale, offset, tables = np.stack([scale, scale]), np.stack([offset, offset - HALF]), tables.with_parities()
    row, whole, fraction = (torch.from_numpy(x).to(device) for x in network.ladder.rows(scale, offset))
    costs = Costs(cost_table(tables, device), row.long(), whole.float(), 1 - 2.0 * (fraction < 0))
    if tile.lattice is None:
        return Rounding(costs)
    if isinstance(tile.lattice, Diamond):
        return DiamondChoice(costs, _positions(coded), torch.from_numpy(tile.lattice.wide).to(device)[coded])
    assert isinstance(tile.lattice, Lattice)
    place = coded.flatten().cumsum(0) - 1
    members = torch.from_numpy(tile.lattice.members).to(device)
    alone = coded.flatten().clone()
    alone[members.flatten()] = False
    ordered = network.in_order(known)
    assert isinstance(ordered, Lattice)
    last = torch.from_numpy(ordered.last).to(device)
    return LatticeChoice(tile.lattice.kind, costs, place[members], place[alone], last)

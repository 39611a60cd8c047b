from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from conftest import coded, pixels_of, psnr
from PIL import Image

from pillow_lic.codec import searching
from pillow_lic.codec.analysis import analyse, analysed
from pillow_lic.codec.encoding import header_for
from pillow_lic.entropy.coder import SymbolEncoder
from pillow_lic.entropy.tables import Tables
from pillow_lic.models.loading import load_model
from pillow_lic.models.transforms import rate_weight
from pillow_lic.options import EncoderOptions
from pillow_lic.quantizers import lattice
from pillow_lic.quantizers.adaptive import Priors
from pillow_lic.quantizers.lattice import BW16, E8, H24, Kind
from pillow_lic.search import tile
from pillow_lic.search.costs import Costs, cost_table
from pillow_lic.search.hyper import HYPER_STEPS, better_z
from pillow_lic.search.influence import influence
from pillow_lic.search.look import steepness
from pillow_lic.search.refine import STEPS, refine
from pillow_lic.search.relax import DiamondChoice, LatticeChoice, Relaxation, Rounding, nearest_two
from pillow_lic.search.target import largest, largest_of_few
from pillow_lic.search.view import TileView
from pillow_lic.symbols import CodedTile, given, hyper_steps, pack, with_hyper
from pillow_lic.training import probabilities

CPU = torch.device("cpu")


@pytest.fixture
def part(photo: Image.Image) -> Image.Image:
    return photo.crop((40, 20, 168, 132))


def loss(image: Image.Image, quality: float, **options: object) -> float:
    """Lambda * distortion + rate in bits, from the real file's bytes and pixels."""
    data = coded(image, quality=quality, **options)
    squared = (
        np.square(pixels_of(data).astype(float) - np.asarray(image))
        .reshape(-1, len(image.getbands()))
        .mean(axis=1)
        .sum()
    )
    return float(rate_weight(quality)) * squared + 8 * len(data)


@pytest.mark.usefixtures("in_float32")
def test_effort_pays(part: Image.Image) -> None:
    """In the mean: up to effort 2 the search estimates what symbols cost."""
    losses = np.array([[loss(part, quality, effort=effort) for effort in (0, 2, 4)] for quality in (1, 4.5, 8)])
    _, second, fourth = (losses / losses[:, :1]).T
    assert second.mean() < 0.997
    assert second.max() < 1.006
    assert fourth.mean() < 0.99
    assert fourth.max() < 0.997


def test_effort_works_in_tiles_and_on_grey_pictures(part: Image.Image) -> None:
    for image in (part, part.convert("L")):
        plain, searched = (coded(image, tile=64, effort=effort) for effort in (0, 1))
        assert searched != plain
        assert pixels_of(searched).shape == pixels_of(plain).shape
    assert loss(part, 4, tile=64, effort=2) < 0.997 * loss(part, 4, tile=64)


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 90)])
def test_effort_takes_any_size(part: Image.Image, size: tuple[int, int]) -> None:
    assert pixels_of(coded(part.resize(size), effort=1)).shape == (size[1], size[0], 3)


def test_no_search_where_nothing_is_coded() -> None:
    flat = Image.new("RGB", (64, 64), (128, 128, 128))
    assert len(coded(flat, effort=1, quality=1)) <= len(coded(flat, quality=1))


def test_search_is_deterministic_and_leaves_torch_alone(part: Image.Image) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = coded(part, effort=3)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert coded(part, effort=3) == first
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            assert coded(part, effort=3) == first
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("quantizer", ["scalar", "diamond", "bw16", "h24"])
def test_a_search_is_the_same_with_any_default_dtype(part: Image.Image, dtype: torch.dtype, quantizer: str) -> None:
    expected = [coded(part, effort=effort, quantizer=quantizer) for effort in (1, 3)]
    torch.set_default_dtype(dtype)
    try:
        assert [coded(part, effort=effort, quantizer=quantizer) for effort in (1, 3)] == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_search_that_finds_nothing_better_changes_nothing(part: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile, "refine", lambda start, *_: start.round() + 1)
    monkeypatch.setattr(Rounding, "best", lambda _, target, curves: target.round() + 1)
    monkeypatch.setattr(searching, "better_z", lambda _, y, start, *rest: start + 1)
    for effort in (1, 3):
        assert coded(part, effort=effort, quantizer="scalar") == coded(part, quantizer="scalar")


def test_progress_counts_steps(part: Image.Image) -> None:
    for effort in (2, 3):
        seen: list[tuple[int, int]] = []
        coded(part, effort=effort, tile=64, progress=lambda done, total, seen=seen: seen.append((done, total)))
        steps = 4 * (STEPS[effort] + HYPER_STEPS[effort] + 1)
        assert [done for done, _ in seen] == list(range(1, steps + 1))
        assert {total for _, total in seen} == {steps}


def test_progress_is_told_to_one_call_only(part: Image.Image) -> None:
    seen: list[tuple[int, int]] = []
    iio.imwrite("<bytes>", np.asarray(part), extension=".lic", progress=lambda *both: seen.append(both))
    coded(part)
    assert seen == [(1, 1)]
    with pytest.raises(TypeError, match="progress must be a function of two numbers, not int"):
        coded(part, progress=1)


def test_effort_doubles_or_more() -> None:
    assert len(STEPS) == len(HYPER_STEPS) == 10
    assert list(HYPER_STEPS) == sorted(HYPER_STEPS)
    assert all(2 * one <= other for one, other in pairwise(STEPS))


# -- parts ---------------------------------------------------------------------------------


def test_costs_are_code_lengths() -> None:
    tables = load_model("mse").tables
    rng = np.random.default_rng(3)
    index = rng.integers(tables.skip, len(tables), 500).astype(np.uint8)
    symbols = rng.integers(-40, 41, 500).astype(np.int16)
    whole = rng.integers(-3, 4, 500).astype(np.int16)
    sign = rng.choice([-1, 1], 500)
    costs = Costs(cost_table(tables, CPU), *(torch.from_numpy(x.astype(np.float32)) for x in (index, whole, sign)))
    costs = Costs(costs.bits, costs.row.long(), costs.whole, costs.sign)
    ideal = tables.bits((sign * (symbols - whole)).astype(np.int16), index)
    assert np.allclose(costs.of(torch.from_numpy(symbols).float()).numpy(), ideal, atol=1e-4)


def costs_of(tables: Tables, count: int) -> Costs:
    zero = torch.zeros(count)
    return Costs(cost_table(tables, CPU), zero.long(), zero, zero + 1)


def test_expected_cost_has_its_gradient() -> None:
    rounding = Rounding(costs_of(Tables([np.array([2**22, 2**23, 2**21, 2**21])]), 1))
    values = torch.tensor([0.3], requires_grad=True)
    point, bits = rounding(values, 1.0, 0.0, torch.Generator())
    # One bit for 0, three for 1.
    assert bits.item() == pytest.approx(1 + 2 * point.item())
    bits.backward()
    assert values.grad is not None
    assert values.grad.item() > 0


def quadratic(target: torch.Tensor, weight: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda values: weight * (values - target).square().sum()


def test_the_best_points_near_a_target() -> None:
    """Of all points around it, each group's on the lattice, none is better by more than a few of the groups."""
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(83, generator=generator) * 2
    curves = torch.full((83,), 8.0)
    tables = Tables.mirrored(*probabilities.make_tables(), skip=0)
    zero = torch.zeros(2, 83)
    costs = Costs(cost_table(tables.with_parities(), CPU), (zero + 20).long(), zero, zero + 1)
    rounding = Rounding(costs.part((0,)))
    best = rounding.best(target, curves)
    near = target.round() + torch.arange(-3, 4)[:, None]
    loss = curves * (near - target).square() + torch.stack([rounding.costs.of(n) for n in near])
    assert torch.allclose(loss.min(dim=0).values.sum(), (curves * (best - target).square()).sum() + rounding.bits(best))
    position, wide = torch.arange(83) % 10, torch.arange(83) < 60
    choices = [DiamondChoice(costs, position, wide)]
    for kind in (E8, BW16, H24):
        members, rest = torch.arange(83).split(80 // kind.side * kind.side)
        members = members.reshape(-1, kind.side)
        choices.append(LatticeChoice(kind, costs, members, rest, torch.arange(len(members)) % kind.side))
    for choice in choices:
        found = choice.best(target, curves)
        assert bool(((2 * found).round() == 2 * found).all())
        nearest = choice.best(target, 1e6 * curves)

        def total(points: torch.Tensor, choice: Relaxation = choice) -> float:
            return float((curves * (points - target).square()).sum() + choice.bits(points))

        assert total(found) < total(nearest)


@pytest.mark.parametrize("steps", STEPS[3:6])
def test_refinement_trades_distortion_for_bits(steps: int) -> None:
    target = torch.linspace(-0.9, 0.9, 181)
    costs = costs_of(Tables([np.array([2**20, 15 * 2**20 - 2**21, 2**20, 2**20])]), 181)
    distortion = quadratic(target, 8.0)
    found = refine(target, distortion, lambda _: Rounding(costs), steps, 0.03).round()

    def total(values: torch.Tensor) -> float:
        return float(distortion(values) + costs.of(values).sum())

    # One costs about four bits more than zero, worth it from 0.75 on; rounding begins at 0.5.
    best = torch.where(target.abs() > 0.75, target.sign(), 0)
    assert total(best) <= total(found) < 0.5 * (total(best) + total(target.round()))


def test_nearest_two_points_of_even_sum() -> None:
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(1)) * 3
    one, other = nearest_two(x)
    near = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 8)
    candidates = x.round()[:, None] + near
    distance = (candidates - x[:, None]).square().sum(dim=2)
    distance[candidates.sum(dim=2) % 2 == 1] = torch.inf
    least = distance.topk(2, dim=1, largest=False).values
    assert torch.allclose((one - x).square().sum(dim=1), least[:, 0], atol=1e-4)
    assert torch.allclose((other - x).square().sum(dim=1), least[:, 1], atol=1e-4)
    assert bool((one != other).any(dim=1).all())


@pytest.mark.parametrize("kind", [E8, BW16, H24])
def test_lattice_choice_hardens_to_the_nearest_point(kind: Kind) -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(83, generator=generator) * 4
    zero = torch.zeros(2, 83)
    tables = Tables.mirrored(*probabilities.make_tables(), skip=0)
    costs = Costs(cost_table(tables.with_parities(), CPU), (zero + 50).long(), zero, zero + 1)
    most = 80 // kind.side * kind.side
    members, rest = torch.arange(most).reshape(-1, kind.side), torch.arange(most, 83)
    place = torch.arange(len(members)) * 3 % kind.side
    points, bits = LatticeChoice(kind, costs, members, rest, place)(values, 0.01, 0.0, generator)
    floors, coset = lattice.quantise(values.numpy()[:most].reshape(-1, kind.side), kind)
    assert np.allclose(points[:most].reshape(floors.shape), floors + kind.words[coset] / 2, atol=1e-3)
    assert torch.allclose(points[most:], values[most:].round(), atol=1e-3)
    symbols = torch.from_numpy(floors).float().flatten()
    others = floors[np.arange(kind.side) != place.numpy()[:, None]]
    free = tables.bits_of(others, 50).sum() + tables.bits_of(points[most:].round().numpy(), 50).sum()
    at = (torch.arange(len(members)), place)
    last = costs.part((0, members[at])).of_parity(symbols.reshape(floors.shape)[at]).sum()
    words = len(floors) * math.log2(len(kind.words))
    assert float(bits) == pytest.approx(free + float(last) + words, abs=0.1)


def test_steps_are_shorter_where_gradients_are_large() -> None:
    position = torch.arange(4).repeat(50)
    moves = (
        torch.randn(200, generator=torch.Generator().manual_seed(7)) * torch.tensor([0.33, 0.33, 1.0, 0.1])[position]
    )
    found = steepness(moves, position)
    assert bool((found == found[:4][position]).all())
    assert torch.allclose(found[:4], torch.tensor([1.0, 1.0, 3.0, 0.3]), rtol=0.25)
    assert float(steepness(1000 * moves, position).max()) == 5


@pytest.mark.parametrize("context", ["checkerboard", "staircase", "autoregressive"])
@pytest.mark.parametrize("quantizer", ["scalar", "bw16", "h24"])
def test_influence_tells_what_files_take(part: Image.Image, context: str, quantizer: str) -> None:
    """The float network is its integers' equal, and symbols that nobody sees have no influence."""
    model = load_model("mse")
    opts = EncoderOptions(quality=4, context=context, quantizer=quantizer)
    with torch.no_grad():
        (found,) = analyse(model, np.asarray(part), header_for(model, opts, *part.size, "RGB"), CPU)
    mask = found.priors.index >= model.tables.skip
    bits = influence(model, found, context, mask)
    assert bits is not None
    points = torch.from_numpy(found.steps)[mask].requires_grad_(True)
    total = bits(points)
    network, coder = model.context(context, CPU), SymbolEncoder()
    network.encode(coder, found.y, given(model, found))
    parities = 0 if found.lattice is None else len(found.lattice.coset)  # the last of a group tells a bit less
    assert float(total.detach()) - parities == pytest.approx(8 * len(coder.finish()), rel=0.03)
    total.backward()
    gradient = torch.zeros(mask.shape).masked_scatter(mask, points.grad)
    unseen = torch.zeros(mask.shape, dtype=torch.bool)
    for unit in network.units:
        if unit.step == network.units[-1].step and not unit.causal:
            phase = torch.arange(mask.shape[1])[:, None] + torch.arange(mask.shape[2]) & 1 == unit.parity
            unseen[network.order[unit.first : unit.last]] |= phase
    assert not bool(gradient[unseen].any())
    assert float((gradient[mask & ~unseen] != 0).float().mean()) > 0.9


@pytest.mark.parametrize(("context", "levels"), [("none", 0), ("staircase", 0), ("staircase", 5), ("volume", 0)])
def test_better_z_costs_less(part: Image.Image, context: str, levels: int) -> None:
    """Fewer bits in all, and means no farther from the latents that are not coded.

    Sums over qualities: four positions of z save less than the range coder's words of 32 bits can always show.
    """
    model = load_model("mse")
    bits, costs = [0, 0], [0.0, 0.0]
    for value in (1.5, 2.5, 4.0, 5.5, 7.0):
        opts = EncoderOptions(quality=value)
        header, quality = header_for(model, opts, *part.size, "RGB"), torch.tensor([value])
        with torch.no_grad():
            (tile_part,) = analysed(model, np.asarray(part), header, CPU, None, searching=False)
            chosen = None if not levels else np.full((2, 2), levels, np.int8)
            start = hyper_steps(model, tile_part.y, opts.quality_code, quality)
            before = with_hyper(model, start, tile_part.y, opts.quality_code, levels=chosen)
        z = better_z(model, tile_part.y, start, before, context, 20)
        with torch.no_grad():
            after = with_hyper(model, z, tile_part.y, opts.quality_code, levels=chosen)
        assert z.shape == start.shape

        def lost(found: CodedTile, y: torch.Tensor = tile_part.y[0]) -> float:
            scaled = y * (1 if found.priors.factor is None else found.priors.factor)
            return float((scaled - found.priors.mean / 64 - torch.from_numpy(found.steps)).square().sum())

        for place, found in enumerate((before, after)):
            size = 8 * len(pack(model, found, context))
            bits[place] += size
            costs[place] += size + 6 * lost(found)
    assert costs[1] < costs[0]
    assert bits[1] < bits[0]


def test_the_float_hyper_synthesis_follows_its_integers(part: Image.Image) -> None:
    model, opts = load_model("mse"), EncoderOptions(quality=5, quantizer="scalar")
    with torch.no_grad():
        (found,) = analyse(model, np.asarray(part), header_for(model, opts, *part.size, "RGB"), CPU)
    gain, mean, _ = model.hyper_synthesis(CPU).z_prior(opts.quality_code)
    z = (found.z + mean[:, None, None] / 64) * gain[:, None, None] / 1024
    network = model.float_hyper_synthesis(CPU)
    means, index, _ = network(torch.from_numpy(z).float()[None], torch.tensor([5.0]))
    h, w = found.priors.mean.shape[1:]
    assert float((means[0, :, :h, :w] - found.priors.mean / 64).abs().mean()) < 0.02
    assert float((index[0, :, :h, :w].clamp(0, 63) - found.priors.index).abs().max()) < 1


# -- targets -------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [450, 1500, 3111])
@pytest.mark.parametrize("effort", [0, 1])
def test_target_size_is_met_and_never_exceeded(part: Image.Image, wanted: int, effort: int) -> None:
    assert 0.97 * wanted <= len(coded(part, target_size=wanted, effort=effort, exif=b"Exif\0\0 12345")) <= wanted


def test_target_bpp(part: Image.Image) -> None:
    data = coded(part, target_bpp=1)
    assert 0.98 <= 8 * len(data) / (part.width * part.height) <= 1


@pytest.mark.parametrize("wanted", [28.5, 33])
def test_target_psnr_is_reached(part: Image.Image, wanted: float) -> None:
    assert wanted <= psnr(part, pixels_of(coded(part, target_psnr=wanted))) < wanted + 0.1


def test_targets_out_of_reach_say_what_is(part: Image.Image) -> None:
    least, best = coded(part, quality=1), coded(part, quality=8)
    with pytest.raises(ValueError, match=f"target_size 100 is out of reach: this picture takes {len(least)} at"):
        coded(part, target_size=100)
    with pytest.raises(ValueError, match=r"target_bpp 0\.01 is out of reach"):
        coded(part, target_bpp=0.01)
    with pytest.raises(ValueError, match=f"target_psnr 80 .* has {psnr(part, pixels_of(best)):.2f} dB at quality 8"):
        coded(part, target_psnr=80)
    assert coded(part, target_size=10**7) == best
    assert coded(part, target_psnr=3) == least


@pytest.mark.parametrize("offset", [-0.3, -0.01, 0, 0.02, 0.2])
@pytest.mark.parametrize("bend", [0.7, 1, 2])
def test_largest_finds_the_code(offset: float, bend: float) -> None:
    """Whatever the shape of the curve and the error of its estimate, and in few attempts."""
    attempts = []

    def value(code: int) -> float:
        return 6 + 3 * (code / 1792) ** bend

    def attempt(code: int) -> tuple[int, float]:
        attempts.append(code)
        return code, value(code) + offset

    for wanted in (6.4, 7, 8.7):
        attempts.clear()
        found = largest(wanted, 1792, value, attempt)
        assert found is not None
        assert value(found) + offset <= wanted < value(found) + offset + 0.02
        assert len(attempts) <= 6
    assert largest(5, 1792, value, attempt) is None
    assert largest(12, 1792, value, attempt) == 1792


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_largest_of_a_few(count: int) -> None:
    values = [7, 11, 17, 26, 38, 54, 75, 100][:count]
    attempts = []

    def attempt(code: int) -> tuple[int, float]:
        attempts.append(code)
        return code, values[code]

    for wanted in range(5, 105):
        attempts.clear()
        below = [code for code, value in enumerate(values) if value <= wanted]
        assert largest_of_few(wanted, count - 1, attempt) == (below[-1] if below else None)
        assert len(attempts) <= 4


def viewed(
    pixels: torch.Tensor, shown: torch.Tensor, *, grey: bool = False, measure: str = "mse"
) -> tuple[float, torch.Tensor]:
    """What a view of 32x32 pixels counts for what a synthesis shows, and the gradient."""
    nothing = torch.zeros(1, 2, 2)
    shown = shown.clone().requires_grad_(True)
    view = TileView(
        lambda _: shown, pixels, nothing[None], 0, 0, nothing, nothing > 0, nothing[:, :1, :1], 1.0, measure, grey=grey
    )
    bits = view.distortion(torch.zeros(0))
    (gradient,) = torch.autograd.grad(bits, shown)
    return float(bits.detach()), gradient


def test_a_search_sees_what_its_users_see() -> None:
    pixels = torch.full((1, 3, 30, 27), 127.5)
    shown = torch.full((1, 3, 32, 32), 140.0)  # whiter than white, and past the edges anything
    shown[:, :, 30:], shown[:, :, :, 27:] = -50, 80
    assert viewed(pixels, shown)[0] == 0
    pixels[0, 0, 0, 0] = 120
    bits, gradient = viewed(pixels, shown)
    assert bits == pytest.approx(7.5**2 / 3)  # each pixel counts a third of its squared errors
    assert gradient[0, 0, 0, 0] > 0  # down towards white, where it would be less
    assert gradient.count_nonzero() == 1
    pixels, shown = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    shown[:, 0], shown[:, 2] = 5, -5
    assert viewed(pixels, shown)[0] > 0
    assert viewed(pixels, shown, grey=True)[0] == 0


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_search_of_a_grey_picture_knows_that_it_is_one(part: Image.Image, mode: str) -> None:
    model = load_model("mse")
    pixels = np.asarray(part.convert(mode))[:107]
    header = header_for(model, EncoderOptions(), pixels.shape[1], pixels.shape[0], mode)
    (one,) = analysed(model, pixels, header, CPU, searching=True)
    view = searching._viewer(model, one, header, "mse")(one.coded)
    assert view.grey is (mode == "L")
    assert view.pixels.shape == (1, 3, 107, 128)
    assert view.around.shape[2:] == (7, 8)


def test_levels_tell_by_how_many_indices_they_are_finer() -> None:
    levels = np.arange(-16, 17, dtype=np.int8)[None]
    zero = torch.zeros((1, 4, 4 * levels.size), dtype=torch.int32)
    priors = Priors(zero, zero.to(torch.uint8), zero).adapted(levels, 64)
    assert np.array_equal(np.asarray(priors.level)[:, ::4], levels.repeat(4, axis=0))
    assert Priors(zero, zero.to(torch.uint8), zero).level == 0

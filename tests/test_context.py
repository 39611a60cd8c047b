from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import coded, pixels_of
from PIL import Image
from test_exact import SETTINGS

from pillow_lic import codec, container
from pillow_lic.container import Coded, Frame
from pillow_lic.entropy.passes import Given, Places, Schedule, padded
from pillow_lic.header import Header
from pillow_lic.models import loading
from pillow_lic.models.context.network import ContextModel, UnitNetwork, positions
from pillow_lic.models.context.schedule import (
    CONTEXTS,
    HYPER,
    TAPS,
    WHOLE,
    ContextShape,
    Division,
    Unit,
    units_of,
    view_of,
)
from pillow_lic.models.hyperprior import HyperpriorModel
from pillow_lic.models.loading import load_model, model_by_identity
from pillow_lic.models.transforms import Architecture
from pillow_lic.training.export import write_model
from pillow_lic.training.probabilities import make_tables

CPU = torch.device("cpu")
TINY = Architecture(latents=24, analysis=(0, 0), synthesis=(0, 0), hyper_channels=16, hyperlatents=8)
DIVISIONS = {
    "sliced": {
        "checkerboard": Division((9,)),
        "channel": Division((3, 9, 14)),
        "autoregressive": Division((3, 14)),
        "staircase": Division((3, 9, 14)),
    },
    "interleaved": {
        "checkerboard": Division(groups=2),
        "channel": Division(groups=5),
        "autoregressive": Division(groups=2),
        "staircase": Division((9,), 2),
    },
    "whole": {
        "checkerboard": WHOLE,
        "channel": Division((12,)),
        "autoregressive": WHOLE,
        "staircase": WHOLE,
        HYPER: Division(groups=2),
    },
}
"""Ways of dividing the channels, by context."""


@pytest.fixture(scope="module", params=DIVISIONS)
def division(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def without_onednn() -> Iterator[None]:
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Whoever sets this wants float32 products of rounded factors, in convolutions too."""
    parts = (torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul)
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "bf16"
    try:
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value


def tiny_model(division: str = "sliced") -> HyperpriorModel:
    """An untrained model whose context models say something all the same."""
    torch.manual_seed(5)
    model = HyperpriorModel(TINY)
    model.hyper_synthesis.leave.bias.data[:, TINY.latents :] = 3.0
    for name, divided in DIVISIONS[division].items():
        model.contexts[name] = ContextModel(name, ContextShape(**asdict(divided), width=16), TINY)
    for network in model.contexts.modules():
        if isinstance(network, UnitNetwork):
            torch.nn.init.normal_(network.value_window, std=0.1)
            torch.nn.init.normal_(network.size_window, std=0.02)
            torch.nn.init.normal_(network.leave.weight, std=0.05)
            torch.nn.init.normal_(network.leave.bias, std=0.05)
    if HYPER in model.contexts:
        for network in model.contexts[HYPER].networks.values():
            torch.nn.init.normal_(network.leave.bias, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, division: str) -> str:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    write_model(tiny_model(division), path, make_tables())
    return str(path)


@pytest.mark.parametrize("context", CONTEXTS)
def test_units_hold_every_latent_once(context: str, division: str) -> None:
    units = units_of(context, 24, DIVISIONS[division][context])
    seen = np.zeros((24, 2), int)
    for unit in units:
        seen[unit.first : unit.last, slice(None) if unit.parity is None else unit.parity] += 1
    assert (seen == 1).all()
    assert [u.step for u in units] == sorted(u.step for u in units)


@pytest.mark.parametrize("context", CONTEXTS)
def test_conditions_are_what_is_coded(tiny: str, context: str) -> None:
    model = load_model(tiny)
    network = model.context(context, CPU)
    rng = np.random.default_rng(4)
    symbols = rng.integers(-9, 10, (24, 5, 6)).astype(np.int16)
    index = torch.from_numpy(rng.integers(0, 60, (24, 5, 6)).astype(np.uint8))
    hidden = torch.from_numpy(rng.integers(-900, 900, (16, 5, 6)).astype(np.float64))
    skip = model.tables.skip
    given = Given(index, hidden, 700, skip)
    scale, offset = network.conditions(symbols, given)
    coded = index.numpy() >= skip
    table, whole, fraction = network.ladder.rows(scale[coded], offset[coded])
    relative = np.where(fraction < 0, whole - symbols[coded], symbols[coded] - whole)
    pairs = sorted(zip(table.tolist(), relative.tolist(), strict=True))
    known = list(network.seen(symbols, given))
    seen = [(t, v) for values, tables in known for v, t in zip(values.tolist(), tables.tolist(), strict=True)]
    assert pairs == sorted(seen)


@pytest.mark.parametrize("size", [(4, 6), (3, 5), (3, 6), (5, 4), (1, 1), (1, 2), (2, 1)])
def test_positions_of_a_parity(size: tuple[int, int]) -> None:
    grid = np.add.outer(np.arange(size[0]), np.arange(size[1])) % 2
    for parity in (0, 1):
        assert positions(*size, parity, CPU).tolist() == np.flatnonzero(grid == parity).tolist()
    assert positions(*size, None, CPU).tolist() == list(range(size[0] * size[1]))


def test_slices_must_divide_the_channels() -> None:
    for slices in ((24,), (5, 5), (0, 3)):
        with pytest.raises(ValueError, match="slices"):
            units_of("channel", 24, Division(slices))
    assert Division((3,), 2).order(8) == [0, 2, 1, 3, 5, 7, 4, 6]
    with pytest.raises(ValueError, match="ascending"):
        Division((9, 3))
    with pytest.raises(ValueError, match="in two, not into 3"):
        units_of("checkerboard", 24, Division((3, 9)))
    with pytest.raises(ValueError, match="in 25 groups each do not divide 24"):
        units_of("channel", 24, Division(groups=25))
    with pytest.raises(ValueError, match="1 to 64"):
        Division(groups=0)


@pytest.mark.parametrize(
    ("context", "wanted"),
    [("checkerboard", (2, 2)), ("channel", (5, 5)), ("staircase", (3, 6)), ("autoregressive", (10, 10))],
)
def test_how_many_steps_the_first_channels_take(context: str, wanted: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "interleaved.safetensors"
    write_model(tiny_model("interleaved"), path, make_tables())
    exact = load_model(str(path)).context(context, CPU)
    assert (exact.steps_for(9), exact.steps_for(24)) == wanted
    rest = exact.beyond(9, 1, 5, 6)
    assert not rest[:9].any()
    assert rest[9:].all() == (context == "staircase")


def test_an_autoregressive_window_shows_the_past_only() -> None:
    (unit,) = units_of("autoregressive", 4)
    view = view_of(unit, (unit,))
    assert view.centre == (0, 0)
    assert max(view.taps[0]) < TAPS * TAPS // 2


def test_later_autoregressive_parts_see_all_around_in_earlier_ones() -> None:
    units = units_of("autoregressive", 4, Division((1, 3)))
    view = view_of(units[1], units)
    assert (view.spatial, view.centre) == (3, (0, 1))
    assert [len(taps) for taps in view.taps] == [TAPS * TAPS, 12, 12]


def order(unit: Unit, h: int, w: int) -> np.ndarray:
    """When each position of a unit is decoded."""
    row, column = np.mgrid[:h, :w]
    return unit.step + column + 3 * row if unit.causal else np.full((h, w), unit.step)


@pytest.mark.parametrize("context", CONTEXTS)
def test_nothing_depends_on_what_is_decoded_later(context: str, division: str) -> None:
    model = tiny_model(division)
    network = model.contexts[context]
    assert isinstance(network, ContextModel)
    generator = torch.Generator().manual_seed(1)
    h, w = 6, 7
    symbols = torch.randint(-5, 6, (1, 24, h, w), generator=generator).float()
    index, hidden = torch.full((1, 24, h, w), 30.0), torch.randn(1, 16, h, w, generator=generator)
    when = torch.zeros(24, h, w)
    for unit in network.units:
        place = slice(None) if unit.parity is None else (np.add.outer(range(h), range(w)) % 2 == unit.parity)
        times = torch.from_numpy(order(unit, h, w)).float()
        for channel in network.order[unit.first : unit.last].tolist():
            when[channel][place] = times[place]
    quality = torch.tensor([3.0])
    with torch.no_grad():
        shift, refined = network(symbols, index, hidden, quality)
        changed = False
        for time in when.unique():
            other = torch.where(when >= time, symbols + 3, symbols)
            found, found_index = network(other, index, hidden, quality)
            past = (when <= time)[None]
            assert torch.equal(found[past], shift[past])
            assert torch.equal(found_index[past], refined[past])
            changed |= not torch.equal(found, shift)
    assert changed or len(when.unique()) == 1


@pytest.mark.parametrize("context", CONTEXTS)
def test_integers_follow_the_float_network(context: str, tiny: str, division: str) -> None:
    network = tiny_model(division).contexts[context]
    exact = load_model(tiny).context(context, CPU)
    rng = np.random.default_rng(3)
    h, w, code = 5, 8, 512
    symbols = np.rint(rng.normal(size=(24, h, w)) * 3).astype(np.int16)
    index = torch.from_numpy(rng.integers(15, 45, (24, h, w)).astype(np.uint8))
    hidden = torch.from_numpy(np.rint(rng.normal(size=(16, h, w)) * 256))
    with torch.no_grad():
        args = (torch.from_numpy(symbols)[None].float(), index[None].float(), hidden[None].float() / 256)
        shift, refined = (x[0].numpy() for x in network(*args, torch.tensor([3.0])))
    tables = np.concatenate([[0], np.cumsum(32 // exact.ladder.grain + 1)])
    with torch.inference_mode():
        for part in exact._passes(Given(index, hidden, code, 0)):
            part.symbols = symbols.take(part.target).astype(np.int32)
            wanted, wanted_shift, old = (x.take(part.target) for x in (refined, shift, index.numpy()))
            found = np.searchsorted(tables, part.table, side="right") - 1
            assert np.abs(found - np.clip(wanted, 0, 63)).max() < 1
            grain = exact.ladder.grain[found] / 64
            offset = part.whole + np.where(part.mirrored, -1, 1) * (part.table - tables[found]) * grain
            scale = 0.11 * np.exp(old * np.log(60 / 0.11) / 63)
            assert (np.abs(offset - wanted_shift) < grain / 2 + 0.06 * scale + 0.02).all()


@pytest.mark.parametrize("context", CONTEXTS)
def test_every_context_decodes_to_the_same_pixels(context: str, tiny: str, small: Image.Image) -> None:
    plain = coded(small, model=tiny, context="none", quality=5)
    data = coded(small, model=tiny, context=context, quality=5)
    assert data != plain
    with Image.open(BytesIO(data)) as image:
        assert image.info["context"] == context
    assert np.array_equal(pixels_of(data), pixels_of(plain))


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(
    "setting",
    [
        *SETTINGS,
        lambda: without_onednn(),
        lambda: bfloat16_products(),
    ],
    ids=["1 thread", "4 threads", "medium", "bf16 default", "autocast", "no oneDNN", "bf16 products"],
)
def test_bytes_are_the_same_under_every_setting(
    context: str, tiny: str, small: Image.Image, setting: Callable[[], AbstractContextManager[None]]
) -> None:
    plain = coded(small, model=tiny, context="none")
    expected = codec.transcode(plain, context)
    with setting():
        assert codec.transcode(plain, context) == expected
        assert codec.transcode(expected, "none") == plain


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
def test_windows_are_summed_alike_in_every_way(context: str, width: int, tiny: str) -> None:
    exact = load_model(tiny).context(context, CPU)
    grid = torch.randint(-128, 129, (18, width + 4, 1, 24), generator=torch.Generator().manual_seed(2)).float()
    grid = torch.cat([grid, grid.abs()], dim=2)
    index = torch.full((24, 10, width), 30, dtype=torch.uint8)
    known = Given(index, torch.zeros(0, 10, width), 0, 0, tiles=2)
    for work, _ in Schedule(exact.units, exact.order, known):
        for unit, where in work:
            if unit not in exact.networks:
                continue
            network = exact.networks[unit]
            if isinstance(where, Places):
                assert torch.equal(network._convolved(grid, where), network._gathered(grid, where))
                continue
            row, column = np.mgrid[:10, :width]
            at = torch.from_numpy(np.flatnonzero(column + 3 * (row % 5) == where.left + 3 * where.top))
            places = Places(at, torch.from_numpy(padded(at.numpy(), 5, width)))
            assert torch.equal(network._viewed(grid, where), network._gathered(grid, places))
            assert torch.equal(where.within(grid), places.within(grid))
            values = torch.arange(10.0 * width)[:, None].expand(-1, 3)
            for kept in (values, values.contiguous(), torch.cat([values, values])[10 * width :]):
                assert torch.equal(where.of(kept), places.of(kept))


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("tile", [None, 64])
def test_transcoding_there_and_back_gives_the_same_bytes(
    context: str, tile: int | None, tiny: str, small: Image.Image
) -> None:
    metadata = {"xmp": b"<x/>" * 50, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}
    data = coded(small, model=tiny, context="none", tile=tile, **metadata)
    there = codec.transcode(data, context)
    assert np.array_equal(pixels_of(there), pixels_of(data))
    assert codec.transcode(there, "none") == data
    assert there == coded(small, model=tiny, context=context, tile=tile, **metadata)


@pytest.mark.parametrize("options", [{}, {"tile": 64}, {"progressive": True}, {"tile": 64, "adaptive": True}])
def test_z_has_a_context_model_of_its_own(options: dict[str, Any], tmp_path: Path, small: Image.Image) -> None:
    with_it, without = tiny_model("whole"), tiny_model("whole")
    del without.contexts[HYPER]
    files = {}
    for name, model in (("with", with_it), ("without", without)):
        path = tmp_path / f"{name}.safetensors"
        write_model(model, path, make_tables())
        assert HYPER not in load_model(str(path)).contexts
        for context in ("none", "channel"):
            files[name, context] = coded(small, model=str(path), context=context, quality=5, **options)
    shown = [pixels_of(data) for data in files.values()]
    assert all(np.array_equal(pixels, shown[0]) for pixels in shown)
    tiles = {name: _tiles(data) for name, data in files.items()}
    assert tiles["with", "none"] == tiles["without", "none"]
    assert tiles["with", "channel"] != tiles["without", "channel"]
    assert codec.transcode(files["with", "channel"], "none") == files["with", "none"]
    assert codec.transcode(files["with", "none"], "channel") == files["with", "channel"]


def _tiles(data: bytes) -> Sequence[Coded]:
    reader = container.Reader(BytesIO(data))
    reader.metadata()
    return next(reader.frames()).tiles


def test_auto_keeps_the_smallest(tiny: str, small: Image.Image) -> None:
    sizes = {c: len(coded(small, model=tiny, context=c)) for c in ("none", "checkerboard", "channel", "staircase")}
    data = coded(small, model=tiny, context="auto")
    assert len(data) == min(sizes.values())
    with Image.open(BytesIO(data)) as image:
        assert sizes[image.info["context"]] == len(data)


@pytest.mark.parametrize("context", ["none", *CONTEXTS])
def test_damaged_symbols_never_become_a_picture(context: str, tiny: str, small: Image.Image) -> None:
    data = coded(small, model=tiny, context=context)
    reader = container.Reader(BytesIO(data))
    reader.metadata()
    (tile,) = next(reader.frames()).tiles
    rng = np.random.default_rng(7)
    wanted, harmless = pixels_of(data), 0
    for _ in range(25):
        broken = bytearray(tile)
        broken[int(rng.integers(len(broken)))] ^= 1 << int(rng.integers(8))
        damaged = container.write(reader.header, {}, [Frame([bytes(broken)])])
        try:
            found = pixels_of(damaged)
        except OSError as error:
            assert "damaged LIC file" in str(error)
        else:  # the last bits of a stream may say the same either way
            assert np.array_equal(found, wanted)
            harmless += 1
    assert harmless < 3
    for length in (0, 3, 4, 9, len(tile) // 2):
        damaged = container.write(reader.header, {}, [Frame([tile[:length]])])
        with Image.open(BytesIO(damaged)) as image, pytest.raises(OSError, match="damaged LIC file"):
            image.load()


def test_a_context_that_the_model_lacks(tmp_path: Path, small: Image.Image) -> None:
    model = HyperpriorModel(TINY)
    path = tmp_path / "plain.safetensors"
    write_model(model, path, make_tables())
    target = tmp_path / "x.lic"
    with pytest.raises(ValueError, match="has no context 'channel'; it has 'none'"):
        small.save(target, model=path, context="channel")
    assert not target.exists()
    small.save(target, model=path)  # no context asked for: the best there is
    reader = container.Reader(BytesIO(target.read_bytes()))
    reader.metadata()
    header = reader.header
    assert header.context == "none"
    claimed = Header(header.width, header.height, "RGB", header.model_id, header.quality_code, "channel")
    with (
        Image.open(BytesIO(container.write(claimed, {}, list(reader.frames())))) as image,
        pytest.raises(OSError, match="no context 'channel'"),
    ):
        image.load()


def test_context_models_are_read_when_asked_for(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny)
    assert not any(name.startswith("context.") for name in model.tensors)
    assert set(model.contexts) == set(CONTEXTS)
    data = Path(tiny).read_bytes()
    monkeypatch.setattr(loading, "_loaded", {})  # nothing of it stays for other tests
    fresh = tmp_path / "replaced.safetensors"
    fresh.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    replaced = load_model(str(fresh))
    fresh.write_bytes(data)
    with pytest.raises(ValueError, match="replaced while it was in use"):
        replaced.context("channel", CPU)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert load_model(str(copy)).context("channel", CPU)
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(tmp_path))
    fresh.unlink()
    assert model_by_identity(replaced.identity).path == copy
    copy.unlink()
    assert model_by_identity(replaced.identity).path == copy  # what is in memory works on

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGES, coded, pixels_of
from PIL import Image
from safetensors.torch import load_file, save_file
from test_context import TINY

from pillow_lic import codec
from pillow_lic.bench.metrics import decibel, ms_ssim
from pillow_lic.entropy.passes import Given
from pillow_lic.entropy.volume import ExactVolume
from pillow_lic.models import loading
from pillow_lic.models.context.schedule import WHOLE, ContextShape
from pillow_lic.models.context.volume import DEPTH, OWN, TAPS, VolumeContext, wave_of
from pillow_lic.models.draft import Draft
from pillow_lic.models.importance import ImportanceMap
from pillow_lic.models.loading import Model, load_model
from pillow_lic.training.export import write_volume
from pillow_lic.training.recipe import Recipe, Schedule
from pillow_lic.training.volume import export_volume

CPU = torch.device("cpu")


def volume() -> VolumeContext:
    """An untrained context model that says something all the same."""
    torch.manual_seed(8)
    context = VolumeContext(ContextShape(width=16), TINY)
    for parameter in (context.value_window, context.size_window, context.channel, context.rung):
        torch.nn.init.normal_(parameter, std=0.05)
    torch.nn.init.normal_(context.leave.weight, std=0.1)
    return context.eval()


@pytest.fixture(scope="module")
def with_volume(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("volumes") / "tiny.safetensors"
    shutil.copy(tiny, path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # another identity than that of the model without a volume
    path.write_bytes(bytes(data))
    owner = load_model(str(path))
    assert isinstance(owner, Model)
    write_volume(volume(), owner)
    owner.contexts["volume"] = WHOLE
    return str(path)


def random_latents(h: int, w: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    symbols = np.rint(rng.normal(size=(24, h, w)) * 3).astype(np.int16)
    index = torch.from_numpy(rng.integers(15, 45, (24, h, w)).astype(np.uint8))
    return symbols, index, torch.from_numpy(np.rint(rng.normal(size=(16, h, w)) * 256))


def test_taps_are_a_causal_kernel() -> None:
    assert (len(TAPS), OWN) == (82, 12)
    assert len(set(TAPS)) == len(TAPS)
    assert all(t.column + 3 * t.row - t.back < 0 and t.back <= DEPTH for t in TAPS)
    assert list(TAPS) == sorted(TAPS)


def test_nothing_depends_on_what_is_decoded_later() -> None:
    network = volume()
    symbols, index, hidden = random_latents(5, 6)
    inputs = torch.from_numpy(symbols)[None].float(), index[None].float(), hidden[None].float() / 256
    when = wave_of(*torch.meshgrid(torch.arange(24), torch.arange(5), torch.arange(6), indexing="ij"))
    with torch.no_grad():
        shift, refined = network(*inputs, torch.tensor([3.0]))
        for wave in range(0, int(when.max()) + 1, 4):
            other = torch.where(when >= wave, inputs[0] + 3, inputs[0])
            found, found_index = network(other, *inputs[1:], torch.tensor([3.0]))
            past = (when <= wave)[None]
            assert torch.allclose(found[past], shift[past], atol=1e-5)
            assert torch.allclose(found_index[past], refined[past], atol=1e-5)
            assert wave or not torch.allclose(found, shift, atol=1e-2)


def test_integers_follow_the_float_network(with_volume: str) -> None:
    symbols, index, hidden = random_latents(5, 8)
    model = load_model(with_volume)
    assert isinstance(model, Model)
    exact = model.context("volume", CPU)
    assert isinstance(exact, ExactVolume)
    with torch.no_grad():
        inputs = torch.from_numpy(symbols)[None].float(), index[None].float(), hidden[None].float() / 256
        shift, refined = (x[0].numpy() for x in volume()(*inputs, torch.tensor([3.0])))
    with torch.inference_mode():
        scale, offset = exact.conditions(symbols, Given(index, hidden, 512, 0))
    # Integers are limited where the float network is not, which few of these random weights notice.
    assert np.quantile(np.abs(scale - np.clip(refined, 0, 63)), 0.98) < 1
    sigma = 0.11 * np.exp(index.numpy() * np.log(60 / 0.11) / 63)
    near = np.abs(offset / 64 - shift) < exact.ladder.grain[scale] / 128 + 0.1 * sigma + 0.02
    assert near.mean() > 0.98


@pytest.mark.parametrize("quantizer", ["scalar", "e8"])
@pytest.mark.parametrize("progressive", [False, True])
def test_files_decode_to_the_same_pixels(
    with_volume: str, small: Image.Image, quantizer: str, progressive: bool
) -> None:
    options = {"model": with_volume, "quantizer": quantizer, "quality": 5, "progressive": progressive}
    plain = coded(small, context="none", **options)
    data = coded(small, context="volume", **options)
    with Image.open(BytesIO(data)) as image:
        assert image.info["context"] == "volume"
    assert data != plain
    assert np.array_equal(pixels_of(data), pixels_of(plain))
    assert codec.transcode(plain, "volume") == data
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert codec.transcode(data, "none") == plain
    finally:
        torch.set_num_threads(threads)


def test_a_model_without_one_says_so(tiny: str, small: Image.Image) -> None:
    with pytest.raises(ValueError, match="has no context 'volume'"):
        coded(small, model=tiny, context="volume")


def test_an_importance_map_lies_beside_its_model(with_volume: str, tiny: str, small: Image.Image) -> None:
    torch.manual_seed(2)
    network = ImportanceMap(TINY.latents, 8)
    torch.nn.init.normal_(network.leave.weight, std=3)
    model = load_model(with_volume)
    network.save(Path(with_volume), model.identity)
    data = coded(small, model=with_volume, adaptive="importance")
    assert data not in (coded(small, model=with_volume), coded(small, model=with_volume, adaptive=True))
    assert pixels_of(data).shape == (50, 60, 3)
    shutil.copy(Path(with_volume).with_suffix(".importance"), Path(tiny).with_suffix(".importance"))
    with pytest.raises(ValueError, match=r"^the model 'tiny' has no importance map"):
        coded(small, model=tiny, adaptive="importance")


def test_the_shipped_model_has_both(photo: Image.Image) -> None:
    part = photo.crop((0, 0, 192, 144))
    plain, data = (coded(part, quality=2, context=name) for name in ("none", "volume"))
    assert len(data) < len(plain)
    assert np.array_equal(pixels_of(data), pixels_of(plain))


@pytest.mark.usefixtures("in_float32")
def test_the_shipped_map_finds_what_matters(photo: Image.Image) -> None:
    """By MS-SSIM at equal size, which is what it was trained for."""
    gains = []
    for size in (3000, 4500, 6000):
        files = (coded(photo, target_size=size, adaptive=how) for how in (False, "importance"))
        plain, mapped = (decibel(ms_ssim(pixels_of(data), np.asarray(photo))) for data in files)
        gains.append(mapped - plain)
    assert np.mean(gains) > 0


def test_what_lies_beside_a_model_may_be_read_by_whoever_may_read_the_model(with_volume: str, tmp_path: Path) -> None:
    model, path = load_model(with_volume), tmp_path / "tiny.safetensors"
    path.write_bytes(b"")
    ImportanceMap(TINY.latents, 8).save(path, model.identity)
    Draft(torch.zeros(48, 8, 3, 3), torch.zeros(48)).save(path, model.identity)
    assert len({found.stat().st_mode for found in tmp_path.iterdir()}) == 1


def test_an_export_that_fails_leaves_the_old_one(with_volume: str, tmp_path: Path) -> None:
    beside = Path(with_volume).with_suffix(".volume")
    before = beside.read_bytes()
    recipe = Recipe("v", Schedule(steps=1), TINY, contexts={"volume": ContextShape(width=16)}, rate={"volume": 1.0})
    weights = {f"contexts.volume.{name}": 2 * value for name, value in volume().state_dict().items()}
    torch.save({"recipe": recipe.as_dict(), "average": weights}, tmp_path / "weights.pt")
    with pytest.raises(FileNotFoundError, match="no images"):
        export_volume(Path(with_volume), tmp_path / "weights.pt", tmp_path)
    assert beside.read_bytes() == before
    try:
        export_volume(Path(with_volume), tmp_path / "weights.pt", IMAGES, images=2)
        tables = load_file(beside)["tables.frequencies"].clone()
    finally:
        beside.write_bytes(before)
    assert not torch.equal(tables, load_file(beside)["tables.frequencies"])
    assert not list(beside.parent.glob(".*"))


@pytest.mark.parametrize("suffix", [".volume", ".importance", ".draft"])
@pytest.mark.parametrize("damage", ["nan", "shape", "bytes"])
def test_damage_of_what_lies_beside_a_model_is_named(
    with_volume: str, small: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, damage: str
) -> None:
    """Loaded afresh, since a model that is known by its bytes is not read again."""
    path = tmp_path / "tiny.safetensors"
    shutil.copy(with_volume, path)
    model = load_model(with_volume)
    if suffix == ".volume":
        shutil.copy(Path(with_volume).with_suffix(suffix), path.with_suffix(suffix))
    elif suffix == ".importance":
        ImportanceMap(TINY.latents, 8).save(path, model.identity)
    else:
        Draft(torch.zeros(48, 8, 3, 3), torch.zeros(48)).save(path, model.identity)
    beside = path.with_suffix(suffix)
    tensors, about = load_file(beside), {"model": model.identity.hex()}
    name = next(n for n, t in tensors.items() if t.dim() > 1 and t.shape[0] > 1)
    if damage == "nan":
        tensors[name] = torch.full(tensors[name].shape, float("nan"))
    elif damage == "shape":
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, beside, about)
    if damage == "bytes":
        beside.write_bytes(beside.read_bytes()[:-9])
    monkeypatch.setattr(loading, "_loaded", {})
    ways = {".volume": {"context": "volume"}, ".importance": {"adaptive": "importance"}, ".draft": {}}

    def use() -> None:
        with Image.open(BytesIO(coded(small, model=str(path), **ways[suffix]))) as image:
            image.draft(None, (15, 12))
            image.load()

    with pytest.raises(ValueError, match=rf"tiny{suffix} is damaged"):
        use()

from __future__ import annotations

import json
import runpy
import struct
import sys
import zlib
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGES, coded, psnr
from PIL import Image, ImageOps

from pillow_lic.cli import main
from pillow_lic.models.context.schedule import ContextShape
from pillow_lic.models.hyperprior import HyperpriorModel, gaussian_bits
from pillow_lic.models.transforms import Architecture, at_quality, rate_weight
from pillow_lic.pictures import image_files
from pillow_lic.training import importance, probabilities, validate
from pillow_lic.training.data import Crops
from pillow_lic.training.export import write_manifest, write_model
from pillow_lic.training.importing import is_model, load_state, weights_of
from pillow_lic.training.loop import LATENT_SIDE, Loss, Trainer, rate_factor
from pillow_lic.training.losses import Objective, forward, rate_distortion
from pillow_lic.training.muon import orthogonalise
from pillow_lic.training.qualities import quality_tables, stratified_qualities
from pillow_lic.training.recipe import OPTIMISERS, Batches, Correlation, Optimiser, Recipe, Schedule, load_recipe
from pillow_lic.training.run import train
from pillow_lic.training.surrogates import straight_through
from pillow_lic.training.volume import export_volume

SMALL = Architecture(latents=200, analysis=(1, 0), synthesis=(1, 1), hyper_channels=32, hyperlatents=16)
RECIPE = Recipe("tiny", Schedule(steps=12, warmup_steps=2), SMALL, batches=Batches(64, 2))
ROOT = Path(__file__).resolve().parent.parent


def test_the_untrained_network_is_a_good_linear_codec() -> None:
    """Before any training it codes as a 16x16 DCT does: some 28 to 42 dB from the lowest quality to the highest."""
    model = HyperpriorModel(Architecture())
    images = validate.validation_images(IMAGES)
    curve = validate.estimated_curve(model, images)
    assert curve[0][1] > 27
    assert curve[-1][1] > 38


def test_fine_tuning_begins_with_all_that_ships() -> None:
    """Of other shapes context models would begin anew, without a word."""
    recipe = load_recipe(ROOT / "recipes" / "fine-tune.toml")
    trainer = Trainer(replace(recipe, batches=Batches(64, 1)), IMAGES)
    trainer.start_from(Path("mse"))
    shipped = weights_of("mse")["average"]
    for name, value in trainer.average.items():
        assert torch.equal(value, shipped[name]), name
    assert any(name.startswith("contexts.staircase.") for name in trainer.average)


def test_tables_by_quality_interpolate() -> None:
    table = torch.arange(8.0)[:, None]
    found = at_quality(table, torch.tensor([1.0, 8.0, 2.5, 0.0, 9.0]))
    assert found[:, 0].tolist() == [0, 7, 1.5, 0, 7]
    assert float(rate_weight(1)) == pytest.approx(0.0018)
    assert float(rate_weight(8)) == pytest.approx(0.18)


def test_gaussian_bits_sum_to_one_probability() -> None:
    x = torch.arange(-400, 401).double()
    for index in (0.0, 20.0, 63.0):
        mass = torch.exp2(-gaussian_bits(x, torch.full_like(x, index)))
        assert float(mass.sum()) == pytest.approx(1, abs=1e-5)


def test_straight_through_rounds_and_passes_gradients() -> None:
    x = torch.tensor([0.3, 1.7], requires_grad=True)
    y = straight_through(x)
    y.sum().backward()
    assert y.tolist() == [0, 2]
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1]


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_every_optimiser_lowers_the_loss(kind: str) -> None:
    shape = Architecture(latents=24, analysis=(0, 0), synthesis=(0, 1), hyper_channels=16, hyperlatents=8)
    trainer = Trainer(replace(RECIPE, model=shape, optimiser=Optimiser(kind)), IMAGES)
    loss, crops = Loss(trainer.model, trainer.recipe), trainer.crops.batch(2, torch.Generator().manual_seed(1))
    quality = torch.tensor([2.0, 6.0])
    losses = []
    for _ in range(12):
        value, _ = loss(crops, quality, torch.zeros(()))
        value.backward()
        for optimiser in trainer.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        losses.append(value.item())
    assert losses[-1] < 0.97 * losses[0]


def test_unknown_optimiser() -> None:
    with pytest.raises(ValueError, match="kind"):
        Optimiser("sgd")


def test_muon_makes_singular_values_equal() -> None:
    x = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(x))
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_schedule() -> None:
    schedule = Schedule(steps=100, warmup_steps=10, hold=0.5, final=0.1)
    assert rate_factor(schedule, 0, 0) == pytest.approx(0.1)
    assert rate_factor(schedule, 30, 0) == 1
    assert rate_factor(schedule, 100, 0) == pytest.approx(0.1)
    timed = Schedule(minutes=2, hold=0.0, final=0.0)
    assert rate_factor(timed, 1000, 60) == pytest.approx(0.5)


def test_qualities_of_a_batch_cover_the_range() -> None:
    q = stratified_qualities(7, torch.Generator().manual_seed(1))
    assert torch.equal(q.floor(), torch.arange(1.0, 8.0))


def test_crops_come_from_the_images() -> None:
    crops = Crops(IMAGES, 128, torch.device("cpu"))
    assert crops.count == len(image_files(IMAGES)) == 3
    batch = crops.batch(16, torch.Generator().manual_seed(0))
    assert batch.shape == (16, 3, 128, 128)
    assert batch.min() >= -127.5
    assert batch.max() <= 127.5
    whole = np.asarray(Image.open(IMAGES / "astronaut.png")).astype(np.float32) - 127.5
    windows = np.lib.stride_tricks.sliding_window_view(whole[:, :, 0], (128, 128))
    inside = [
        bool((windows == c).all(axis=(2, 3)).any()) or bool((windows == c[:, ::-1]).all(axis=(2, 3)).any())
        for c in batch[:8, 0].numpy()
    ]
    assert any(inside)


def test_folders_without_fitting_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no images"):
        Crops(tmp_path, 64, torch.device("cpu"))
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="64 pixels"):
        Crops(tmp_path, 64, torch.device("cpu"))


def test_the_loss_falls() -> None:
    trainer = Trainer(replace(RECIPE, schedule=Schedule(steps=60, warmup_steps=2)), IMAGES)
    pixels = trainer.crops.batch(8, torch.Generator().manual_seed(5))
    quality = torch.linspace(1, 8, 8)

    def loss() -> float:
        with torch.no_grad():
            outcome = forward(trainer.averaged_model(), pixels, quality)
            return float(rate_distortion(outcome, quality, 0.4, {"none": 1}))

    before = loss()
    assert trainer.train()
    assert loss() < 0.95 * before


def test_a_run_resumes_where_it_stopped(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c.pt"
    first = Trainer(RECIPE, IMAGES)
    assert first.train(checkpoint, stop_after=0) is False
    assert first.step == 1
    second = Trainer(RECIPE, IMAGES)
    second.restore(checkpoint)
    assert second.step == 1
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert second.train(checkpoint)
    assert second.step == 12
    other = Trainer(replace(RECIPE, model=replace(SMALL, latents=100)), IMAGES)
    with pytest.raises(ValueError, match="another architecture"):
        other.restore(checkpoint)
    longer = Trainer(replace(RECIPE, schedule=Schedule(steps=50)), IMAGES)
    longer.restore(checkpoint)
    for change in ({"lattice": True}, {"seed": 7}, {"stage": "decoder"}):
        with pytest.raises(ValueError, match=f"a run with another {next(iter(change))}"):
            Trainer(replace(RECIPE, **change), IMAGES).restore(checkpoint)
    whole = checkpoint.read_bytes()
    for damaged in (b"", whole[:-1000], b"no checkpoint"):
        checkpoint.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged; remove it"):
            Trainer(RECIPE, IMAGES).restore(checkpoint)


def test_a_run_goes_on_with_the_start_it_had(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("other", 2)):
        first = Trainer(replace(RECIPE, seed=seed), IMAGES)
        first.train(stop_after=0)
        first.save_weights(tmp_path / f"{name}.pt")
    run = Trainer(RECIPE, IMAGES)
    run.start_from(tmp_path / "one.pt")
    run.train(tmp_path / "c.pt", stop_after=0)
    for same in ((), (tmp_path / "one.pt",)):
        again = Trainer(RECIPE, IMAGES)
        again.restore(tmp_path / "c.pt", same)
        assert again.step == 1
    with pytest.raises(ValueError, match="began with other weights"):
        Trainer(RECIPE, IMAGES).restore(tmp_path / "c.pt", (tmp_path / "other.pt",))
    (tmp_path / "cut.pt").write_bytes((tmp_path / "one.pt").read_bytes()[:5000])
    (tmp_path / "recipe.toml").write_text("name = 'x'")
    for wrong in ("cut.pt", "recipe.toml"):
        with pytest.raises(ValueError, match=f"{wrong} is no run's"):
            Trainer(RECIPE, IMAGES).start_from(tmp_path / wrong)


def test_a_loss_that_is_no_number_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    first = Trainer(RECIPE, IMAGES)
    first.train(tmp_path / "c.pt", stop_after=0)
    kept = (tmp_path / "c.pt").read_bytes()
    second = Trainer(RECIPE, IMAGES)
    second.restore(tmp_path / "c.pt")
    with torch.no_grad():
        second.model.log_gain.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step"):
        second.train(tmp_path / "c.pt")
    assert (tmp_path / "c.pt").read_bytes() == kept


def test_windows_over_eight_channels_are_no_tables_by_quality() -> None:
    recipe = replace(RECIPE, contexts={"channel": ContextShape((8, 20), width=16)})
    model = recipe.make_model()
    tables = {id(p) for p in quality_tables(model)}
    names = {name for name, p in model.named_parameters() if id(p) in tables}
    assert {"log_gain", "z_index", "hyper_synthesis.leave.bias", "contexts.channel.networks.1.enter.bias"} <= names
    assert not any("window" in name for name in names)
    assert dict(model.named_parameters())["contexts.channel.networks.1.value_window"].shape == (8, 25)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pictures_of_more_bits_are_not_learned_from_as_white(mode: str, tmp_path: Path) -> None:
    Image.fromarray(np.full((80, 80), 9000, {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])).save(
        tmp_path / "deep.tif"
    )
    with pytest.raises(ValueError, match=rf"deep\.tif .* mode is {mode}"):
        Crops(tmp_path, 64, torch.device("cpu"))


def test_colours_of_more_bits_are_not_learned_from_as_black(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + struct.pack(">H", 4000) * 3 * 80 for _ in range(80))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 80, 80, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with Image.open(tmp_path / "deep.png") as image:
        assert (image.mode, image.getpixel((0, 0))) == ("RGB", (15, 15, 15))
    with pytest.raises(ValueError, match=r"deep\.png .* RGB of more bits"):
        Crops(tmp_path, 64, torch.device("cpu"))


def test_damaged_exif_is_no_reason_to_stop(tmp_path: Path) -> None:
    Image.new("RGB", (80, 80), (200, 9, 9)).save(tmp_path / "a.jpg", exif=b"Exif\0\0nothing of the kind", dpi=(72, 72))
    with pytest.raises(SyntaxError), Image.open(tmp_path / "a.jpg") as image:
        ImageOps.exif_transpose(image)
    assert Crops(tmp_path, 64, torch.device("cpu")).count == 1
    (tmp_path / "b.png").write_bytes((IMAGES / "coffee.png").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"b\.png cannot be used"):
        Crops(tmp_path, 64, torch.device("cpu"))


def test_pictures_that_are_left_out_are_counted(tmp_path: Path) -> None:
    Image.new("RGB", (100, 80), (9, 8, 7)).save(tmp_path / "a.png")
    Image.new("RGB", (70, 64), (1, 2, 3)).save(tmp_path / "b.png")
    Image.new("RGB", (100, 50)).save(tmp_path / "c.png")
    crops = Crops(tmp_path, 64, torch.device("cpu"))
    assert (crops.count, crops.too_small) == (2, 1)
    seen = crops.batch(64, torch.Generator().manual_seed(1)) + 127.5
    assert {tuple(x) for x in seen[:, :, 5, 5].tolist()} == {(9.0, 8.0, 7.0), (1.0, 2.0, 3.0)}
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"d\.png cannot be used"):
        Crops(tmp_path, 64, torch.device("cpu"))


def test_exporting_again_leaves_those_who_read_the_old_model_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = RECIPE.make_model()
    write_model(model, path, probabilities.make_tables())
    picture = Image.open(IMAGES / "astronaut.png").convert("RGB").resize((128, 96))
    data = coded(picture, model=str(path))
    before = np.asarray(Image.open(BytesIO(data)))
    with torch.no_grad():
        model.log_inverse_gain.add_(0.5)
    write_model(model, path, probabilities.make_tables())
    assert np.array_equal(np.asarray(Image.open(BytesIO(data))), before)
    assert coded(picture, model=str(path)) != data


def test_the_last_stage_moves_the_decoder_only(tmp_path: Path) -> None:
    first = Trainer(RECIPE, IMAGES)
    first.train(tmp_path / "joint.pt")
    last = Trainer(replace(RECIPE, stage="decoder"), IMAGES)
    last.start_from(tmp_path / "joint.pt")
    before = {k: v.detach().clone() for k, v in last.model.named_parameters()}
    assert all(torch.equal(v, first.average[k]) for k, v in before.items())
    assert last.train()
    moved = {k for k, v in last.model.named_parameters() if not torch.equal(v, before[k])}
    assert moved
    assert not {k for k in moved if k.startswith(LATENT_SIDE)}
    assert any(k.startswith("synthesis.") for k in moved)
    assert any(k.startswith("hyper_synthesis.") for k in moved)
    with pytest.raises(ValueError, match="--start"):
        train(replace(RECIPE, stage="decoder"), IMAGES, tmp_path / "m.safetensors", tmp_path / "run")


def test_context_models_learn_from_frozen_latents(tmp_path: Path) -> None:
    first = Trainer(RECIPE, IMAGES)
    first.train(tmp_path / "joint.pt")
    contexts = {"staircase": ContextShape((4, 8), width=16), "checkerboard": ContextShape(width=16)}
    schedule = Schedule(steps=80, warmup_steps=2)
    recipe = replace(RECIPE, stage="contexts", contexts=contexts, rate={"staircase": 1.0}, schedule=schedule)
    trainer = Trainer(recipe, IMAGES)
    first.save_weights(tmp_path / "weights.pt")
    trainer.start_from(tmp_path / "weights.pt")
    assert [s["stage"] for s in trainer.stages] == ["joint", "contexts"]
    pixels = trainer.crops.batch(8, torch.Generator().manual_seed(5))
    quality = torch.linspace(1, 8, 8)

    def rates(model: HyperpriorModel) -> tuple[float, float]:
        with torch.no_grad():
            found = forward(model, pixels, quality, Objective(skip=8))
        return float(found.y_bpp.sum()), float(found.context_bpp["staircase"].sum())

    none, before = rates(trainer.model)
    assert trainer.train()
    same, after = rates(trainer.averaged_model())
    assert same == pytest.approx(none, rel=1e-5)
    assert after < before
    assert not trainer.average["contexts.checkerboard.networks.1.value_window"].any()
    trainer.save_weights(tmp_path / "contexts.pt")
    again = Trainer(recipe, IMAGES)
    again.start_from(tmp_path / "weights.pt", tmp_path / "contexts.pt")
    assert [s["stage"] for s in again.stages] == ["joint", "contexts"]
    for part, from_run in (("contexts.staircase.networks.1.value_window", trainer), ("analysis.stem.weight", first)):
        assert torch.equal(again.average[part], from_run.average[part].half().float())


def test_a_model_grows_without_changing_what_it_computes(tmp_path: Path) -> None:
    first = Trainer(RECIPE, IMAGES)
    first.train(tmp_path / "first.pt")
    larger = replace(RECIPE, model=replace(SMALL, analysis=(2, 1), synthesis=(1, 2)))
    grown = Trainer(larger, IMAGES)
    grown.start_from(tmp_path / "first.pt")
    pixels = grown.crops.batch(2, torch.Generator().manual_seed(1))
    quality = torch.tensor([2.0, 7.0])
    with torch.no_grad():
        one = forward(first.averaged_model(), pixels, quality)
        other = forward(grown.averaged_model(), pixels, quality)
    assert torch.allclose(one.mse, other.mse, rtol=1e-4)
    assert torch.allclose(one.y_bpp, other.y_bpp, rtol=1e-4)
    wider = Trainer(replace(RECIPE, model=replace(SMALL, latents=SMALL.latents + 1)), IMAGES)
    with pytest.raises(ValueError, match="other shapes"):
        wider.start_from(tmp_path / "first.pt")
    grown.save_weights(tmp_path / "grown.pt")
    with pytest.raises(ValueError, match="other shapes"):
        Trainer(RECIPE, IMAGES).start_from(tmp_path / "grown.pt")


def test_settings_that_make_no_sense_fail_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mine\.safetensors"):
        train(RECIPE, IMAGES, tmp_path / "mine", tmp_path / "run")
    with pytest.raises(ValueError, match="cuda:99"):
        train(RECIPE, IMAGES, tmp_path / "m.safetensors", tmp_path / "run", device="cuda:99")
    with pytest.raises(ValueError, match="which names none"):
        replace(RECIPE, stage="contexts")
    with pytest.raises(ValueError, match="share of the samples"):
        replace(RECIPE, lattice=1.5)
    with pytest.raises(ValueError, match="at least one way of coding"):
        replace(RECIPE, rate={})
    for wrong in ({"seed": "x"}, {"ema": 2.0}):
        with pytest.raises(ValueError, match="seed must be"):
            replace(RECIPE, **wrong)
    with pytest.raises(ValueError, match="distortion must be"):
        replace(RECIPE, distortion="ssim-sensitive")
    with pytest.raises(ValueError, match="threads must be"):
        train(RECIPE, IMAGES, tmp_path / "m.safetensors", tmp_path / "run", threads=-1)
    (tmp_path / "small").mkdir()
    Image.new("RGB", (60, 60)).save(tmp_path / "small" / "a.png")
    with pytest.raises(ValueError, match="64 pixels"):
        train(RECIPE, IMAGES, tmp_path / "m.safetensors", tmp_path / "run", validation=tmp_path / "small")
    short = replace(RECIPE, schedule=Schedule(steps=5))
    assert not train(short, IMAGES, tmp_path / "run" / "m.safetensors", tmp_path / "run", stop_after=0)


@pytest.mark.parametrize("lattice", [0.0, 0.7])
def test_gains_are_not_rounded_in_training(lattice: float) -> None:
    recipe = replace(RECIPE, lattice=lattice)
    model = recipe.make_model()
    with torch.autocast("cpu", torch.bfloat16):
        rough = [*model.gains(torch.tensor([2.3, 6.1])), *model.z_prior(torch.tensor([2.3, 6.1]))]
    fine = [*model.gains(torch.tensor([2.3, 6.1])), *model.z_prior(torch.tensor([2.3, 6.1]))]
    assert all(torch.equal(a, b) for a, b in zip(rough, fine, strict=True))
    trainer = Trainer(replace(recipe, schedule=Schedule(steps=2)), IMAGES)
    assert trainer.train()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("stage", ["joint", "contexts"])
def test_the_loss_is_one_graph_for_compilers(stage: str) -> None:
    """Where a graph breaks, what could have been fused is not, and the time of a GPU is spent on launching."""
    names = ("checkerboard", "channel", "autoregressive", "staircase")
    shapes = {name: ContextShape((24, 64) if name == "staircase" else (), width=16) for name in names}
    shapes["checkerboard"] = ContextShape(groups=2, width=16)
    correlation = Correlation(weight=0.1)
    recipe = replace(RECIPE, stage=stage, lattice=0.5, contexts=shapes, rate=dict.fromkeys(names, 1.0))
    loss = Loss(recipe.make_model(), replace(recipe, correlation=correlation))
    inputs = (torch.randn(2, 3, 64, 128) * 40, torch.tensor([2.0, 6.0]), torch.zeros(()))
    found = []
    for compute in (loss, torch.compile(loss, backend="eager", fullgraph=True)):
        torch.manual_seed(1)
        found.append(compute(*inputs)[1])
    assert torch.allclose(found[0], found[1], rtol=1e-4)


def test_an_importance_map_learns_from_exact_similarities() -> None:
    model = RECIPE.make_model().eval()
    pixels = Crops(IMAGES, 128, torch.device("cpu")).batch(2, torch.Generator().manual_seed(1))
    quality = torch.tensor([3.0, 6.0])
    with torch.no_grad():
        exact = importance.adapted(model, partial(importance.even_map, 1.0), pixels, quality)[1]
        with torch.autocast("cpu", torch.bfloat16):
            found = importance.adapted(model, partial(importance.even_map, 1.0), pixels, quality)[1]
    assert torch.allclose(found, exact, rtol=0.02)


def test_a_model_file_gives_back_what_it_was_made_of(tmp_path: Path) -> None:
    contexts = {
        "staircase": ContextShape((4, 8), width=16),
        "checkerboard": ContextShape(groups=2, width=16),
        "autoregressive": ContextShape(width=16),
    }
    recipe = replace(RECIPE, contexts=contexts)
    model = recipe.make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.03)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    write_model(model, first, probabilities.make_tables())
    trainer = Trainer(recipe, IMAGES)
    trainer.start_from(first)
    write_model(trainer.averaged_model(), second, probabilities.make_tables())
    assert second.read_bytes() == first.read_bytes()
    other = replace(recipe, contexts=contexts | {"staircase": ContextShape(groups=3, width=16)})
    begun = Trainer(other, IMAGES)
    begun.start_from(first)
    assert not begun.average["contexts.staircase.networks.1.value_window"].any()
    assert begun.average["contexts.checkerboard.networks.2.value_window"].any()
    with pytest.raises(ValueError, match="there is no model file"):
        weights_of(IMAGES / "missing.safetensors")


def test_a_models_stages_are_those_before_a_run_that_starts_from_it() -> None:
    recipe = load_recipe(ROOT / "recipes" / "mse-cpu-contexts-3.toml")
    trainer = Trainer(replace(recipe, batches=Batches(64, 2)), IMAGES)
    trainer.start_from(Path("mse"))
    manifest = json.loads((ROOT / "weights" / "mse.json").read_text(encoding="utf-8"))
    assert trainer.stages[:-1] == manifest["training"]["stages"]
    assert trainer.stages[-1]["stage"] == "contexts"


def test_skipped_latents_cost_distortion_only_where_they_are_skipped() -> None:
    model = HyperpriorModel(SMALL).eval()
    pixels = Crops(IMAGES, 64, torch.device("cpu")).batch(2, torch.Generator().manual_seed(0))
    quality = torch.tensor([2.0, 5.0])
    with torch.no_grad():
        whole = forward(model, pixels, quality)
        none = forward(model, pixels, quality, Objective(skip=64))
        same = forward(model, pixels, quality)
    assert torch.equal(whole.mse, same.mse)
    assert bool((none.mse > whole.mse).all())


def test_from_a_recipe_to_a_file(tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillow_lic.training.run.TABLE_IMAGES", 4)
    output = tmp_path / "mine.safetensors"
    assert train(RECIPE, IMAGES, output, tmp_path / "run", validation=IMAGES)
    manifest = json.loads(output.with_suffix(".json").read_text())
    assert manifest["training"]["stages"][-1]["steps"] == 12
    assert abs(manifest["results"]["integer_cost_percent"]) < 5  # barely trained: its tails are off
    data = coded(photo, quality=6, model=output)
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(tmp_path))
    with Image.open(BytesIO(data)) as image:
        assert image.info["model_id"] == manifest["identity"]
        assert psnr(photo, image) > 28
    assert coded(photo, quality=6, model="mine") == data
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert "validation_bd_rate_jpeg" in last


def test_the_shipped_model_lost_little_in_conversion() -> None:
    manifest = json.loads((ROOT / "weights" / "mse.json").read_text())
    assert manifest["results"]["integer_cost_percent"] < 0.1
    from pillow_lic.models.loading import load_model

    assert load_model("mse").identity.hex() == manifest["identity"]


def test_fitted_tables_are_no_worse_than_gaussian_ones() -> None:
    rng = np.random.default_rng(0)
    index = 25
    values = np.abs(np.rint(rng.laplace(size=20_000) * probabilities.sigma_of(index))).astype(int)
    counts = np.zeros((64, 512), np.int64)
    counts[index] = np.bincount(np.minimum(values, 511), minlength=512)
    cost = []
    for made in (probabilities.make_tables(), probabilities.make_tables(counts)):
        frequencies, lengths = made
        half = np.split(frequencies, np.cumsum(lengths)[:-1])[index]
        cost.append(-np.log2(half[np.minimum(values, len(half) - 1)] / 2**24).sum())
    assert cost[1] < 0.97 * cost[0]


def test_shipped_recipes_load() -> None:
    recipes = sorted((ROOT / "recipes").glob("*.toml"))
    assert recipes
    for path in recipes:
        assert load_recipe(path).limited(20).schedule.steps == 20
    assert RECIPE.limited(20).schedule.steps == RECIPE.schedule.steps == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 1\n[schedule", "not a TOML file"),
        ('name = "x"', "needs a name"),
        ('name = "x"\n[schedule]\nsteps = 3\nspeed = 1', r"unknown key 'speed' in \[schedule\]"),
        ('name = "x"\n[schedule]\nsteps = 3.5', r"steps in \[schedule\] must be a whole number, not 3.5"),
        ('name = "x"\n[schedule]\nsteps = 3\nhold = "x"', r"hold in \[schedule\] must be a number, not 'x'"),
        ('name = "x"\n[schedule]\nsteps = 3\nminutes = 2', "either minutes or steps"),
        ('name = "x"\n[schedule]\nsteps = -3\nminutes = 2', "either minutes or steps"),
        ('name = "x"\n[schedule]\nsteps = 3\n[batches]\nsize = 100', "multiple of 64"),
        (
            'name = "x"\n[schedule]\nsteps = 3\n[batches]\nsize = 64\n[correlation]\nweight = 1\nwindow = 5',
            "needs larger crops",
        ),
        ('name = "x"\n[schedule]\nsteps = 3\n[contexts.none]', "needs no shape"),
        ('name = "x"\n[schedule]\nsteps = 3\n[model]\nchannels = 10', "channels must be"),
        ('name = "x"\nschedule = 3', "must be a table"),
        ('name = "x"\n[schedule]\nsteps = 3\n[contexts.magic]', "unknown context model 'magic'"),
        ('name = "x"\n[schedule]\nsteps = 3\n[contexts.channel]\nslices = [400]', "do not divide 320"),
        ('name = "x"\n[schedule]\nsteps = 3\n[rate]\nchannel = 1', r"not in \[contexts\]"),
        ('name = "x"\n[schedule]\nsteps = 3\n[contexts.hyper]\n[rate]\nhyper = 1', "counts with every other context"),
        ('name = "x"\nstage = "late"\n[schedule]\nsteps = 3', "stage must be"),
    ],
)
def test_mistakes_in_recipes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


@pytest.mark.parametrize("module", ["draft", "importance", "volume"])
def test_what_is_trained_for_a_finished_model_explains_itself(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "pillow_lic" / "training" / f"{module}.py"
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(path), run_name="__main__")
    assert "the following arguments are required: model" in capsys.readouterr().err


def test_what_is_a_model_and_what_a_run_has_saved(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"nothing")
    for name, model in (("mse", True), ("my.v2", True), ("x.safetensors", True), ("gone.pt", False)):
        assert is_model(Path(name)) is model
    assert not is_model(tmp_path / "weights")
    with pytest.raises(ValueError, match=r"no run's checkpoint\.pt or weights\.pt, or is damaged"):
        load_state(tmp_path / "weights", "cpu")
    with pytest.raises(ValueError, match=r"no run's checkpoint\.pt or weights\.pt, or is damaged"):
        export_volume(Path("mse"), tmp_path / "weights", IMAGES)
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "gone.pt", "cpu")


def test_a_manifest_names_what_no_text_can(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.json", {"data": "photos-\udcff", "by": "Müller"})
    assert json.loads((tmp_path / "m.json").read_bytes()) == {"data": "photos-\udcff", "by": "Müller"}


def test_a_run_goes_on_with_its_own_images_alone(tmp_path: Path) -> None:
    trainer = Trainer(RECIPE, IMAGES)
    trainer.save(tmp_path / "c.pt")
    Trainer(RECIPE, IMAGES).restore(tmp_path / "c.pt")
    other = tmp_path / "images"
    other.mkdir()
    (other / "a.png").write_bytes((IMAGES / "astronaut.png").read_bytes())
    with pytest.raises(ValueError, match="a run on other images"):
        Trainer(RECIPE, other).restore(tmp_path / "c.pt")


def test_full_memory_of_training_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("pillow_lic.training.run.train", full)
    recipe = Path(__file__).parents[1] / "recipes" / "fine-tune.toml"
    assert main(["train", str(recipe), "--data", str(IMAGES), "--run", str(tmp_path)]) == 1
    assert "smaller [batches]" in capsys.readouterr().err

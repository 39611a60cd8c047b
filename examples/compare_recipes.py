"""Train recipes one after the other and compare them: BD-rate, seconds a step, milliseconds of synthesis.

    python examples/compare_recipes.py recipes/variants/*.toml --data DIR --images KODAK --runs DIR

BD-rates are by ideal code length (of the context that is trained, else none), against JPEG and the first recipe.
A recipe's ``steps`` say how long it trains; for equal times of training, give each as many as ``--time-only`` shows.
An interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pillow_lic.bench.metrics import bd_rate
from pillow_lic.models.transforms import Synthesis
from pillow_lic.pictures import image_files
from pillow_lic.training.loop import Loss, Trainer
from pillow_lic.training.recipe import Recipe, load_recipe
from pillow_lic.training.validate import Curve, estimated_curve, jpeg_curve, validation_images

TIMED_STEPS = 23


def step_time(recipe: Recipe, data: Path) -> tuple[float, float]:
    """Seconds a step (the mean of twenty, after three) and the billions of operations in it."""
    trainer = Trainer(recipe, data)
    generator, loss, times = torch.Generator().manual_seed(1), Loss(trainer.model, recipe), []

    def step() -> None:
        trainer._step(trainer.crops.batch(recipe.batches.batch, generator), generator, loss)

    with FlopCounterMode(display=False) as counter:
        step()
    for _ in range(TIMED_STEPS):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return sum(times[3:]) / len(times[3:]), counter.get_total_flops() / 1e9


def peak() -> float:
    """Billions of operations a second in the blocks' 3x3 convolution alone, forward, in bfloat16."""
    conv = torch.nn.Conv2d(96, 96, 3, padding=1).to(torch.bfloat16)
    conv = conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(8, 96, 32, 32, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(60):
            started = time.perf_counter()
            conv(x)
            times.append(time.perf_counter() - started)
    return 2 * 8 * 32 * 32 * 96 * 96 * 9 / min(times) / 1e9


def synthesis_time(recipe: Recipe, dtype: torch.dtype) -> float:
    """Milliseconds of the synthesis transform for 768x512 pixels, the median of nine."""
    network = Synthesis(recipe.model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for blocks in (network.fine, network.coarse):
        blocks.to(dtype)
    y = torch.randn(1, recipe.model.latents, 32, 48).contiguous(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(12):
            started = time.perf_counter()
            network(y, torch.tensor([4.0]))
            times.append(time.perf_counter() - started)
    return 1000 * median(times[3:])


def trained_curve(recipe: Recipe, data: Path, images: Path, folder: Path, start: Path | None) -> Curve:
    """Train a recipe to its end and measure it; what is done already is not done again."""
    result = folder / "curve.json"
    asked = {"recipe": recipe.as_dict(), "images": [str(path) for path in image_files(images)]}
    if result.is_file() and (found := json.loads(result.read_text()))["asked"] == asked:
        return [tuple(point) for point in found["curve"]]
    folder.mkdir(parents=True, exist_ok=True)
    trainer, checkpoint = Trainer(recipe, data), folder / "checkpoint.pt"
    if checkpoint.is_file():
        trainer.restore(checkpoint)
    elif start is not None:
        trainer.start_from(start)
    elif recipe.stage != "joint":
        raise SystemExit(f"{recipe.name}: the stage {recipe.stage!r} starts from a finished run; name it with --start")
    with (folder / "log.jsonl").open("a") as log:
        trainer.train(checkpoint, lambda record: print(json.dumps(record), file=log, flush=True))
    trainer.save_weights(folder / "weights.pt")
    context = next(iter(recipe.rate)) if recipe.stage == "contexts" else "none"
    curve = estimated_curve(trainer.averaged_model(), validation_images(images), context)
    result.write_text(json.dumps({"asked": asked, "curve": curve}))
    return curve


def main() -> None:
    """Print the table, a line for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/variants"))
    parser.add_argument("--start", type=Path, help="another run's weights.pt, for stages that start from one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--time-only", action="store_true", help="only what a step and a synthesis take")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if not given.time_only and given.images is None:
        parser.error("--images is needed to compare")
    found: list[dict[str, Any]] = []
    most = peak() if given.time_only else 1.0
    if given.time_only:
        print(f"3x3 convolutions in bfloat16: {most:.0f} GFLOP/s")
    for path in given.recipes:
        recipe = load_recipe(path)
        line: dict[str, Any] = {"recipe": path.stem, "steps": recipe.schedule.steps}
        if given.time_only:
            seconds, operations = step_time(recipe, given.data)
            line["seconds a step"] = round(seconds, 3)
            line["crops/s"] = round(recipe.batches.batch / seconds, 1)
            line["share of the peak"] = round(operations / seconds / most, 3)
            line["float32 ms"] = round(synthesis_time(recipe, torch.float32), 1)
            line["bfloat16 ms"] = round(synthesis_time(recipe, torch.bfloat16), 1)
        else:
            name = path.stem if given.start is None else f"{path.stem}-from-{given.start.parent.name}"
            line["curve"] = trained_curve(recipe, given.data, given.images, given.runs / name, given.start)
        found.append(line)
        print({k: v for k, v in line.items() if k != "curve"}, flush=True)
    if given.time_only:
        return
    jpeg = jpeg_curve(validation_images(given.images))
    for line in found:
        curve = line["curve"]
        print(f"{line['recipe']:12} {line['steps']:6} steps  against JPEG {bd_rate(jpeg, curve):+6.1f} %  "
              f"against {found[0]['recipe']} {bd_rate(found[0]['curve'], curve):+6.1f} %")  # fmt: skip


if __name__ == "__main__":
    main()

"""``lic train``: from a recipe and a folder of images to a model file with its manifest."""

from __future__ import annotations

import ctypes
import json
import math
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pillow_lic import codec, container
from pillow_lic.bench.metrics import bd_rate
from pillow_lic.devices import WORTH_CUDA, choose_device
from pillow_lic.extras import need
from pillow_lic.header import Header
from pillow_lic.models.context.schedule import HYPER, VOLUME
from pillow_lic.models.finding import checkout
from pillow_lic.models.hyperprior import SCALES, SKIP, HyperpriorModel
from pillow_lic.models.loading import FORMAT, Model, load_model
from pillow_lic.options import DEFAULT_LATTICE, EncoderOptions
from pillow_lic.symbols import CodedTile, flat, given, given_of_z
from pillow_lic.training import distributed, export, validate
from pillow_lic.training.draft import write_draft
from pillow_lic.training.loop import Trainer, progress
from pillow_lic.training.probabilities import (
    count_magnitudes,
    count_values,
    half_steps,
    make_context_tables,
    make_tables,
)
from pillow_lic.training.recipe import Recipe
from pillow_lic.training.rounding import input_moments

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h

MOMENT_IMAGES = 50
TABLE_IMAGES = 400
CONTEXT_IMAGES = 150
COST_IMAGES = 3


def train(
    recipe: Recipe,
    data: str | Path,
    output: Path,
    folder: Path,
    *,
    validation: str | Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    stop_after: float | None = None,
    start: Sequence[Path] = (),
) -> bool:
    """Train, or go on training, and write the model once the schedule is finished.

    ``folder`` keeps ``checkpoint.pt`` and ``log.jsonl``; ``start`` are other runs' checkpoints, or
    model files, whose weights a new run begins with.  Returns False if ``stop_after`` ended
    the call first.  Raises ``OSError`` for missing folders, ``ValueError`` for images too small and settings that
    make no sense.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    if threads:
        torch.set_num_threads(threads)
    if output.suffix != ".safetensors":
        raise ValueError(f"a model is a .safetensors file: call it {output.name}.safetensors")
    if stop_after is not None and distributed.processes() > 1:
        raise ValueError("several processes cannot stop after a time: their clocks differ")
    folder.mkdir(parents=True, exist_ok=True)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {output.parent} to write {output.name} into")
    if validation is not None:
        need("train", "bjontegaard")  # not after hours of work
        validate.validation_images(validation)
    device = distributed.device_of(device)
    choose_device(device, WORTH_CUDA)  # a clear error if it is not there
    with distributed.together(device):
        trainer, finished = _run_stage(recipe, data, folder, device, stop_after, start)
    if not finished or distributed.rank():
        return finished
    model = trainer.averaged_model().cpu()
    results = finish(model, recipe, data, output, validation)
    with _Log(folder, recipe) as log:
        log.write({"step": trainer.step, **results})
    about = {"stages": trainer.stages, "device": _device_name(device)}
    export.write_manifest(output.with_suffix(".json"), manifest(recipe, output, data, about, results))
    _say(f"wrote {output} and {output.with_suffix('.json')}")
    return True


def keep_memory() -> None:
    """Have the C library keep what is freed for the next step, which asks for the same sizes again.

    Otherwise each step gives its 100 MB back to the system and gets them in pages anew, a sixth of its time.
    Only glibc knows this; elsewhere nothing happens.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, size in ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 512 << 20)):
            libc.mallopt(option, size)


def _run_stage(
    recipe: Recipe, data: str | Path, folder: Path, device: str, stop_after: float | None, start: Sequence[Path]
) -> tuple[Trainer, bool]:
    """Train to the end of the schedule or of this call; whether it is the schedule's."""
    _say(f"decoding the images of {data}")
    trainer = Trainer(recipe, data, device)
    if trainer.crops.too_small:
        _say(f"{trainer.crops.too_small} images are smaller than a crop and left out, {trainer.crops.count} remain")
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        trainer.restore(checkpoint, start)
        _say(f"continuing {checkpoint} at step {trainer.step}, {trainer.seconds / 60:.1f} minutes done")
    elif start:
        trainer.start_from(*start)
    elif recipe.stage != "joint":
        raise ValueError(f"the stage {recipe.stage!r} starts from a finished run or a model: name it with --start")
    before, weights = trainer.step, folder / "weights.pt"
    with _Log(folder, recipe) as log:
        finished = trainer.train(checkpoint, log.write, stop_after)
    if trainer.step > before or not weights.exists():  # as they were, byte for byte, for what is made from them
        trainer.save_weights(weights)
    if trainer.step == before:
        _say(
            f"the run in {folder} is over: nothing is trained, its model is made again; --run names a new one's folder"
        )
    if not finished:
        _say(f"stopped at step {trainer.step}; the same command goes on from {checkpoint}")
    return trainer, finished


def finish(
    model: HyperpriorModel, recipe: Recipe, data: str | Path, output: Path, validation: str | Path | None
) -> dict[str, float]:
    """Make the integer network and its tables, write the model, and measure it."""
    names = [name for name in model.contexts if name != VOLUME]  # which has a file of its own
    moments = input_moments(model, _samples(data, MOMENT_IMAGES))
    _say(f"measuring the symbols of {TABLE_IMAGES} training images for the probability tables")
    # Where a file that is mapped into memory cannot be removed, it stays.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        plain = Path(folder) / "plain.safetensors"
        export.write_model(model, plain, make_tables(), skip=0, moments=moments)
        counts = count_magnitudes(seen_symbols(plain, data, TABLE_IMAGES))
        context_tables = {
            name: make_context_tables(count_values(seen_passes(plain, name, "scalar", data, CONTEXT_IMAGES)))
            for name in names
        }
        lattice_tables = {
            name: make_context_tables(count_values(seen_passes(plain, name, DEFAULT_LATTICE, data, CONTEXT_IMAGES)))
            for name in names
            if name != HYPER
        }
        seen = seen_passes(plain, "none", DEFAULT_LATTICE, data, CONTEXT_IMAGES)
        lattice_tables["none"] = make_context_tables(count_values(seen, half_steps()), half_steps())
    tables = make_tables(counts)
    output.with_suffix(".json").unlink(missing_ok=True)  # it tells of what is replaced now
    export.write_model(
        model, output, tables, context_tables, lattice_tables, distortion=recipe.distortion, moments=moments
    )
    write_draft(output, data)
    if validation is None:
        return {}
    _say("measuring the model on the validation images")
    images = validate.validation_images(validation)
    curve = validate.estimated_curve(model, images)
    results = {"validation_bd_rate_jpeg": bd_rate(validate.jpeg_curve(images), curve)}
    results["integer_cost_percent"] = validate.conversion_cost(model, _trained(output).exact, images[:COST_IMAGES])
    for stop, (bpp, psnr) in zip(validate.STOPS, curve, strict=True):
        results |= {f"validation_bpp_{stop}": bpp, f"validation_psnr_{stop}": psnr}
    return {k: round(v, 4) for k, v in results.items() if math.isfinite(v)}


def _samples(data: str | Path, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Training images at all qualities, for the float network."""
    for pixels, quality in validate.crops_for_tables(data, count):
        if (part := validate.cut(pixels)).size:
            yield validate.tensor_of(part), torch.tensor([quality])


def _seen_tiles(model: Model, data: str | Path, count: int, quantizer: str = "scalar") -> Iterator[CodedTile]:
    """Coded training images at all qualities."""
    for pixels, quality in tqdm(validate.crops_for_tables(data, count), total=count, delay=2, desc="tables"):
        code = EncoderOptions(quality=quality).quality_code
        header = Header(pixels.shape[1], pixels.shape[0], "RGB", model.identity, code, quantizer=quantizer)
        with torch.inference_mode():
            yield from codec.analyse(model, pixels, header, torch.device("cpu"))


def _trained(path: Path) -> Model:
    model = load_model(str(path))
    assert isinstance(model, Model)
    return model


def seen_symbols(path: Path, data: str | Path, count: int) -> Iterator[tuple[Any, Any]]:
    """(symbols, table indices) of training images, coded with a model that skips nothing."""
    for tile in _seen_tiles(_trained(path), data, count):
        yield tile.y.ravel(), flat(tile.priors.index)
        yield tile.z.ravel(), tile.z_index.ravel()


def seen_passes(
    coder: Path | Model, context: str, quantizer: str, data: str | Path, count: int
) -> Iterator[tuple[Any, Any]]:
    """(values, tables) that a context model codes of training images, skipping what files will skip."""
    model = coder if isinstance(coder, Model) else _trained(coder)
    network = model.context(context, torch.device("cpu"))
    for tile in _seen_tiles(model, data, count, quantizer):
        symbols, known = tile.y, given(model, tile)
        if context == HYPER:
            symbols, known = tile.z, given_of_z(model, tile.z_index, tile.quality_code)
        symbols = np.where(known.index.numpy() < SKIP, 0, symbols)
        with torch.inference_mode():
            yield from network.seen(symbols, replace(known, skip=SKIP))


def manifest(
    recipe: Recipe, output: Path, data: str | Path, about: dict[str, Any], results: dict[str, float]
) -> dict[str, Any]:
    """What people want to know of a model: where it comes from and what it achieves."""
    ours = checkout() and (Path(data) / "SOURCES.md").exists()
    return {
        "name": output.stem,
        "identity": load_model(str(output)).identity.hex(),
        "format": FORMAT,
        "container": container.VERSION,
        "recipe": recipe.as_dict(),
        "scales": SCALES,
        "training": {
            **about,
            "commit": _commit(),
            "finished": datetime.now(UTC).date().isoformat(),
            "torch": torch.__version__,
            "sources": "docs/training-data.md" if ours else Path(data).resolve().name,
        },
        "results": results,
    }


class _Log:
    """Appends records to log.jsonl in a run's folder, to TensorBoard's files where that is installed,
    and shows the run on a progress bar.  Only the first of several processes writes.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._folder, self._recipe = folder, recipe
        self._board: Any = None

    def __enter__(self) -> _Log:
        self._quiet = distributed.rank() > 0
        if not self._quiet:
            self._file = (self._folder / "log.jsonl").open("a", encoding="utf-8")
            with suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self._folder))
        bar_format = "{l_bar}{bar}| {elapsed}{postfix}"
        self._bar = tqdm(total=100, unit="%", desc=self._recipe.name, bar_format=bar_format, disable=self._quiet)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if not self._quiet:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, record: dict[str, Any]) -> None:
        if self._quiet:
            return
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in record.items():
                if name != "step":
                    self._board.add_scalar(name, value, record["step"])
        if "loss" in record:
            done = progress(self._recipe.schedule, record["step"], record["seconds"])
            self._bar.n = round(100 * min(1.0, done), 1)
            self._bar.set_postfix(step=record["step"], loss=record["loss"])


def _commit() -> str | None:
    """The commit of this code, if it runs from a checkout."""
    if not (root := checkout()):  # installed, perhaps inside of somebody's own repository
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _say(message: str) -> None:
    print(message, file=sys.stderr)

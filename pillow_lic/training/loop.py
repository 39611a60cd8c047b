"""The training loop: one code for CPU and CUDA, resumable at any checkpoint."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pillow_lic import atomic
from pillow_lic.devices import block_dtype
from pillow_lic.models.context.schedule import HYPER
from pillow_lic.models.hyperprior import SKIP, HyperpriorModel
from pillow_lic.models.loading import load_model
from pillow_lic.models.transforms import QUALITIES
from pillow_lic.training import distributed
from pillow_lic.training.data import Crops
from pillow_lic.training.importing import is_model, load_state, weights_of
from pillow_lic.training.losses import Objective, forward, rate_distortion
from pillow_lic.training.muon import make_optimisers
from pillow_lic.training.qualities import cubics, initialise_priors, quality_tables, stratified_qualities
from pillow_lic.training.recipe import Recipe, Schedule, recipe_from

CHECKPOINT_SECONDS = 120.0
LOG_STEPS = 50

LATENT_SIDE = ("analysis.", "hyper_analysis.", "log_gain", "z_inverse_gain", "z_mean")
"""What decides the latents: frozen in the stages that start from another run."""


def learns(parameter: str, recipe: Recipe) -> bool:
    """Whether a parameter is trained in the recipe's stage."""
    asked = parameter.startswith(tuple(f"contexts.{name}." for name in (*recipe.rate, HYPER)))
    if recipe.stage == "contexts" or parameter.startswith("contexts."):
        return asked
    return recipe.stage == "joint" or not parameter.startswith(LATENT_SIDE)


class Loss(nn.Module):
    """The training loss of a batch, and what is logged of it: one module, for compilers and DDP."""

    def __init__(self, model: HyperpriorModel, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self._low = block_dtype(next(model.parameters()).device) is torch.bfloat16

    def forward(self, pixels: Tensor, quality: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels, qualities (B,) and progress 0...1 -> loss, (loss, mse, bpp of y, of z, of z in its
        context, of y in each context).
        """
        recipe = self.recipe
        joint = recipe.stage == "joint"
        objective = Objective(
            quantisation=recipe.quantisation if joint else "straight-through",
            progress=progress,
            lattice=recipe.lattice,
            skip=0 if joint else SKIP,
            distortion=None if recipe.stage == "contexts" else recipe.distortion,
            contexts=tuple(recipe.rate),
            window=recipe.correlation.window if recipe.correlation.weight else 0,
            mask=recipe.correlation.mask,
            by_channel=recipe.correlation.by_channel,
        )
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self._low):
            outcome = forward(self.model, pixels, quality, objective)
        loss = rate_distortion(outcome, quality, recipe.lambda_balance, recipe.rate, recipe.correlation.weight)
        means = [outcome.mse, outcome.y_bpp, outcome.z_bpp, outcome.z_context_bpp, *outcome.context_bpp.values()]
        return loss, torch.stack([loss, *(m.mean() for m in means)]).detach()


class Trainer:
    """A model in training: weights, their running average, optimisers, and how far it has come."""

    def __init__(self, recipe: Recipe, data: str | Path, device: str = "cpu") -> None:
        if distributed.processes() > 1 and not recipe.schedule.steps:
            raise ValueError("several processes need a schedule in steps: their clocks differ")
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = torch.device(device)
        self.model = recipe.make_model().to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.crops = Crops(data, recipe.batches.size, self.device)
        self.optimisers = make_optimisers(self.model, recipe.optimiser)
        self.base_rates = [[g["lr"] for g in o.param_groups] for o in self.optimisers]
        self.average = {k: v.detach().clone() for k, v in self.model.named_parameters()}
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, Any]] = []
        self.started = False
        self.origin: list[str] = []
        self._zero = torch.zeros((), device=self.device)
        for name, p in self.model.named_parameters():
            p.requires_grad_(learns(name, recipe))
        # Data, not parameters: copying into them is no operation to differentiate.
        self._tables = [p.data for p in quality_tables(self.model) if p.requires_grad]
        self._smoothing = cubics(QUALITIES).to(self.device)

    # -- state -----------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically; of several processes only the first does."""
        if distributed.rank():
            return
        state = {
            "recipe": self.recipe.as_dict(),
            "model": self.model.state_dict(),
            "average": self.average,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "origin": self.origin,
            "data": self.crops.amount,
        }
        _write(state, path)

    def save_weights(self, path: Path) -> None:
        """Write the averaged weights alone, in half precision: what another stage starts from."""
        if distributed.rank():
            return
        state = {
            "recipe": self.recipe.as_dict(),
            "average": {k: v.half() for k, v in self.average.items()},
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        _write(state, path)

    def restore(self, path: Path, start: Sequence[Path] = ()) -> None:
        """Continue from a checkpoint of the same architecture (the schedule may differ), if it is of a run that began
        with the weights of ``start``, where any are named.
        """
        try:
            state = load_state(path, self.device, "model", "average", "recipe", "optimisers", "step", "seconds")
        except ValueError as error:
            raise ValueError(f"{error}; remove it or choose another folder") from error
        saved = recipe_from(state["recipe"])
        # Parameters are told apart by their place: context models come in the same order, too.
        shapes = [(r.model, list(r.contexts.items())) for r in (saved, self.recipe)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{path} holds another architecture than the recipe's: {saved.model}")
        differs = [f.name for f in fields(saved) if getattr(saved, f.name) != getattr(self.recipe, f.name)]
        if differs := sorted(set(differs) - {"name", "schedule"}):
            raise ValueError(
                f"{path} is of a run with another {', '.join(differs)}; remove it or choose another folder"
            )
        self.origin = state.get("origin", [])
        if start and "origin" in state and self.origin != [_digest(p) for p in start]:
            raise ValueError(f"{path} is of a run that began with other weights; remove it or choose another folder")
        if state.get("data", self.crops.amount) != self.crops.amount:
            raise ValueError(f"{path} is of a run on other images; remove it or choose another folder")
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimiser, values in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        self.step, self.seconds = state["step"], state["seconds"]
        self.history = state.get("history", [])

    def start_from(self, *paths: Path) -> None:
        """Begin with the averaged weights of another run's checkpoint.pt or weights.pt, or with a model's, by its file
        or name.

        What it lacks comes from the next path, if there is one.  What this recipe's model has more (context
        models, also where the run's have another shape, and blocks, which begin as the identity) starts untrained.
        Raises ``ValueError`` if other networks have other shapes.
        """
        saved = [self._weights_of(path) for path in paths]
        told = saved[0].get("recipe", saved[0])["distortion"]
        if self.recipe.stage == "contexts" and told != self.recipe.distortion:  # which the model's file will tell
            raise ValueError(f"{paths[0]} was trained for {told!r}: the recipe's distortion must be the same")
        self.history = [*saved[0].get("history", []), *([stage_of(saved[0])] if "recipe" in saved[0] else [])]
        own = self.model.state_dict()
        state: dict[str, Tensor] = {}
        for part in reversed(saved):
            same = _same_contexts(part, own, self.recipe)
            state |= {k: v for k, v in part["average"].items() if not k.startswith("contexts.") or k.startswith(same)}
        if any(name not in own or own[name].shape != value.shape for name, value in state.items()):
            raise ValueError(f"{', '.join(map(str, paths))}: networks of other shapes than the recipe's")
        self.model.load_state_dict(state, strict=False)
        self.average = {k: v.detach().clone() for k, v in self.model.named_parameters()}
        self.started, self.origin = True, [_digest(path) for path in paths]

    def _weights_of(self, path: Path) -> dict[str, Any]:
        if not is_model(path):
            return load_state(path, self.device, "average", "recipe")
        found = weights_of(path)
        found["average"] = {name: value.to(self.device) for name, value in found["average"].items()}
        return found

    @property
    def stages(self) -> list[dict[str, Any]]:
        """What the weights went through, from the first stage to this one."""
        this = {"recipe": self.recipe.as_dict(), "step": self.step, "seconds": self.seconds}
        return [*self.history, stage_of(this)]

    def averaged_model(self) -> HyperpriorModel:
        """A copy of the model with the running average of the weights."""
        model = self.recipe.make_model().to(self.device)
        model.load_state_dict(self.average)
        return model.eval()

    # -- training --------------------------------------------------------------------------

    def train(
        self,
        checkpoint: Path | None = None,
        on_log: Callable[[dict[str, Any]], None] | None = None,
        stop_after: float | None = None,
    ) -> bool:
        """Train to the end of the schedule, or for ``stop_after`` minutes; True if at the end.

        Writes a checkpoint every two minutes and when it returns.  Raises ``FloatingPointError``
        if the loss is no number any more.
        """
        batch = self.recipe.batches.batch
        seed = self.recipe.seed * 1_000_003 + self.step
        generator = torch.Generator(self.device).manual_seed(seed)
        if self.step == 0 and not self.started:
            initialise_priors(self.model, self.crops.batch(4 * batch, generator))
        # Every process starts from the same weights and goes on with crops of its own.
        own_seed = seed + 7919 * distributed.rank()
        generator.manual_seed(own_seed)
        torch.manual_seed(own_seed)  # of the noise in place of rounding
        compute = distributed.share_gradients(Loss(self.model, self.recipe), self.device)
        if self.device.type == "cuda":
            # Cutting the graph where gradients are exchanged fails where functions have gradients of their own.
            torch._dynamo.config.optimize_ddp = False
            compute = torch.compile(compute)  # type: ignore[assignment]
        called = time.monotonic()
        self._warm_up(compute)
        started, before = time.monotonic(), self.seconds
        saved = started
        sums: list[Tensor] = []
        while not (finished := progress(self.recipe.schedule, self.step, self.seconds) >= 1):
            sums.append(self._step(self.crops.batch(batch, generator), generator, compute))
            self.step += 1
            now = time.monotonic()
            self.seconds = before + now - started
            if self.step % LOG_STEPS == 0:
                self._check(sums)
                self._report(torch.stack(sums).mean(dim=0).tolist(), on_log)
                sums.clear()
            if checkpoint and now - saved > CHECKPOINT_SECONDS:
                self._check(sums)
                self.save(checkpoint)
                saved = now
            if stop_after is not None and now - called > 60 * stop_after:
                break
        self._check(sums)
        if checkpoint:
            self.save(checkpoint)
        return finished

    def _check(self, sums: list[Tensor]) -> None:
        """``FloatingPointError`` if the loss is no number any more: the last checkpoint that was stays."""
        if sums and not math.isfinite(float(torch.stack(sums)[:, 0].sum())):
            raise FloatingPointError(f"the loss is not finite at step {self.step}")

    def _warm_up(self, compute: nn.Module) -> None:
        """Have a GPU's compiler do its work, which is no training and does not count as such."""
        if self.device.type != "cuda":
            return
        size, count = self.recipe.batches.size, self.recipe.batches.batch
        pixels = torch.zeros((count, 3, size, size), device=self.device).to(memory_format=torch.channels_last)
        compute(pixels, torch.ones(count, device=self.device), self._zero)[0].backward()
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        torch.cuda.synchronize(self.device)

    def _step(self, pixels: Tensor, generator: torch.Generator, compute: nn.Module) -> Tensor:
        self._set_rates()
        quality = stratified_qualities(pixels.shape[0], generator)
        pixels = pixels.to(memory_format=torch.channels_last)
        loss, figures = compute(pixels, quality, self._progress())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimiser.clip)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if self._tables:  # together: each launch on a GPU takes longer than the work
            smooth = self._smoothing @ torch.cat(self._tables, dim=1)
            torch._foreach_copy_(self._tables, torch.split(smooth, [table.shape[1] for table in self._tables], dim=1))
        self._average_weights()
        return figures  # type: ignore[no-any-return]

    def _progress(self) -> Tensor:
        if self.recipe.quantisation != "soft-to-hard":
            return self._zero  # no transfer to the device where nobody asks
        done = progress(self.recipe.schedule, self.step, self.seconds)
        return torch.full((), min(1.0, done), device=self.device)

    def _set_rates(self) -> None:
        factor = rate_factor(self.recipe.schedule, self.step, self.seconds)
        for optimiser, rates in zip(self.optimisers, self.base_rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    def _average_weights(self) -> None:
        # A short memory at first, so that the start's values are forgotten.
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        live = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.average.values()), live, 1 - decay)

    def _report(self, values: list[float], on_log: Callable[[dict[str, Any]], None] | None) -> None:
        record = {"step": self.step, "seconds": round(self.seconds, 1)}
        record["progress"] = round(progress(self.recipe.schedule, self.step, self.seconds), 4)
        names = (
            "loss",
            "mse",
            "y_bpp",
            "z_bpp",
            "z_bpp_context",
            *(f"y_bpp_{name}" for name in self.model.contexts if name in self.recipe.rate),
        )
        record |= {k: round(v, 5) for k, v in zip(names, values, strict=True)}
        if on_log:
            on_log(record)


def _same_contexts(saved: dict[str, Any], own: dict[str, Tensor], recipe: Recipe) -> tuple[str, ...]:
    """Prefixes of the parameters of those context models that a run and a recipe have in the same shape."""
    divisions = saved["recipe"]["contexts"] if "recipe" in saved else saved["contexts"]
    found = []
    for name, shape in recipe.contexts.items():
        prefix = f"contexts.{name}."
        given = {k: v.shape for k, v in saved["average"].items() if k.startswith(prefix)}
        said = divisions.get(name, {})
        same = (tuple(said.get("slices", ())), said.get("groups", 1)) == (shape.slices, shape.groups)
        if same and all(k in own and own[k].shape == size for k, size in given.items()):
            found.append(prefix)
    return tuple(found)


def _digest(path: Path) -> str:
    """What tells weights apart: a model's identity, or as much of a checkpoint's hash."""
    if is_model(path):
        return load_model(str(path)).identity.hex()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _write(state: dict[str, Any], path: Path) -> None:
    data = BytesIO()
    torch.save(state, data)
    atomic.write(str(path), data.getvalue())


def stage_of(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's stage in a line of a manifest."""
    recipe = state["recipe"]
    found = {name: recipe[name] for name in ("stage", "distortion", "rate", "seed", "batches") if name in recipe}
    return {**found, "steps": state["step"], "minutes": round(state["seconds"] / 60, 1)}


def progress(schedule: Schedule, step: int, seconds: float) -> float:
    """Share of the schedule that is done, 0...1 and above."""
    return step / schedule.steps if schedule.steps else seconds / (60 * schedule.minutes)


def rate_factor(schedule: Schedule, step: int, seconds: float) -> float:
    """Learning-rate factor: linear warm-up, then constant, then a cosine to ``final``."""
    warm = min(1.0, (step + 1) / max(1, schedule.warmup_steps))
    x = (progress(schedule, step, seconds) - schedule.hold) / (1 - schedule.hold)
    x = min(1.0, max(0.0, x))
    return warm * (schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * x)))

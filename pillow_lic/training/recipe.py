"""Recipes: one TOML file says everything about a training run but where the images lie."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pillow_lic.distortions import DISTORTIONS, MS_SSIM_SIDE
from pillow_lic.models.context.network import ContextModel
from pillow_lic.models.context.schedule import HYPER, VOLUME, ContextShape, channels_of, units_of
from pillow_lic.models.context.volume import VolumeContext
from pillow_lic.models.hyperprior import HyperpriorModel
from pillow_lic.models.transforms import LATENT_STRIDE, Architecture
from pillow_lic.training.correlation import mask_of
from pillow_lic.training.surrogates import QUANTISATIONS

OPTIMISERS = ("muon", "soap", "adam")

LOSSES = [name for name in DISTORTIONS if name != "ssim-sensitive"]
"""Distortions to train for; what is left out is for the search."""

STAGES = ("joint", "contexts", "decoder")


@dataclass(frozen=True)
class Schedule:
    """How long to train and how the learning rate goes: warm-up, constant, cosine to ``final``.

    ``minutes`` counts training time (over all resumed runs), ``steps`` optimiser steps; one of
    them is given.  ``hold`` is the share of the run at the constant rate.
    """

    minutes: float = 0.0
    steps: int = 0
    warmup_steps: int = 100
    hold: float = 0.4
    final: float = 0.02

    def __post_init__(self) -> None:
        if min(self.minutes, self.steps) < 0 or (self.minutes > 0) == (self.steps > 0):
            raise ValueError("a schedule needs either minutes or steps, above 0")
        if not 0 <= self.hold < 1 or not 0 <= self.final <= 1:
            raise ValueError("hold must lie in 0...1 (below 1) and final in 0...1")


@dataclass(frozen=True)
class Optimiser:
    """What moves the convolutions inside the networks ("muon", "soap" or "adam"), and the rates of each.

    Adam moves the stem, the head, biases and tables in any case.
    """

    kind: str = "muon"
    muon: float = 1e-3
    soap: float = 3e-3
    adam: float = 4e-4
    momentum: float = 0.95
    clip: float = 1.0

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, OPTIMISERS)


@dataclass(frozen=True)
class Batches:
    """Random crops: ``size`` a multiple of 64, ``batch`` crops a step."""

    size: int = 256
    batch: int = 8

    def __post_init__(self) -> None:
        if self.size < 64 or self.size % 64:
            raise ValueError(f"the crop size must be a multiple of 64, not {self.size}")
        if self.batch < 1:
            raise ValueError(f"the batch must be at least 1, not {self.batch}")


@dataclass(frozen=True)
class Correlation:
    """The correlation loss: its weight (0: off), the side of its window and the mask over it.

    ``by_channel`` keeps correlations of opposite sign in different channels from cancelling.
    """

    weight: float = 0.0
    window: int = 3
    mask: str = "point"
    by_channel: bool = False

    def __post_init__(self) -> None:
        mask_of(self.mask, self.window)
        if not self.weight >= 0:
            raise ValueError(f"the correlation loss's weight must be at least 0, not {self.weight}")


@dataclass(frozen=True)
class Recipe:
    """A training run: shapes, schedule, optimiser, crops, loss weighting and seed.

    ``stage`` is "joint" (everything learns, from noisy latents), or one of those that start from
    another run: "contexts" (only the context models named in ``rate`` learn, from the latents that
    files really hold) or "decoder" (what decodes learns from those latents, what decides them is
    frozen).  ``contexts`` are the model's context models, "hyper" being that of z, which learns with any
    other; ``rate`` says how much each of the others counts in the loss, "none" being the hyperprior
    alone.  ``distortion`` is "mse", "ms-ssim" or "ssim-weighted", ``quantisation`` what stands for
    rounding in the joint stage.  The share ``lattice`` of the samples has the default lattice's errors.
    """

    name: str
    schedule: Schedule
    model: Architecture = field(default_factory=Architecture)
    optimiser: Optimiser = field(default_factory=Optimiser)
    batches: Batches = field(default_factory=Batches)
    contexts: dict[str, ContextShape] = field(default_factory=dict)
    rate: dict[str, float] = field(default_factory=lambda: {"none": 1.0})
    stage: str = "joint"
    distortion: str = "mse"
    quantisation: str = "mixed"
    lattice: float = 0.0
    correlation: Correlation = field(default_factory=Correlation)
    lambda_balance: float = 0.4
    ema: float = 0.999
    seed: int = 1

    def __post_init__(self) -> None:
        _one_of("stage", self.stage, STAGES)
        _one_of("distortion", self.distortion, LOSSES)
        _one_of("quantisation", self.quantisation, QUANTISATIONS)
        if self.distortion == "ms-ssim" and self.batches.size < MS_SSIM_SIDE:
            raise ValueError(f"MS-SSIM needs crops of at least {MS_SSIM_SIDE} pixels")
        if not 0 <= self.lattice <= 1:
            raise ValueError(f"lattice, a share of the samples, must be 0 to 1, not {self.lattice}")
        if not isinstance(self.seed, int) or not 0 <= self.ema < 1:
            raise ValueError(f"seed must be a whole number and ema 0 to 1, not {self.seed!r} and {self.ema!r}")
        if not isinstance(self.rate, dict) or not self.rate:
            raise ValueError("[rate] must name at least one way of coding: without a rate, files may grow at will")
        if self.correlation.weight and self.correlation.window > self.batches.size // LATENT_STRIDE:
            raise ValueError(f"a correlation window of {self.correlation.window} needs larger crops")
        for name, shape in self.contexts.items():
            if name == "none":
                raise ValueError("[contexts] names 'none', which is no context model: it needs no shape")
            if name != VOLUME:
                units_of(name, channels_of(name, self.model)[0], shape)
        for name, share in self.rate.items():
            if name == HYPER:
                raise ValueError(f"[rate] names {HYPER!r}, which counts with every other context")
            if name != "none" and name not in self.contexts:
                raise ValueError(f"[rate] names {name!r}, which is not in [contexts]")
            if not share > 0:
                raise ValueError(f"shares in [rate] must be above 0, not {share!r}")
        if self.stage == "contexts" and set(self.rate) <= {"none"}:
            raise ValueError("the stage 'contexts' trains the context models in [rate], which names none")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints and manifests."""
        return asdict(self)

    def make_model(self) -> HyperpriorModel:
        """An untrained model of the recipe's shapes."""
        model = HyperpriorModel(self.model)
        for name, shape in self.contexts.items():
            model.contexts[name] = (
                VolumeContext(shape, self.model) if name == VOLUME else ContextModel(name, shape, self.model)
            )
        return model

    def limited(self, max_steps: int) -> Recipe:
        """The same recipe for a dry run of at most ``max_steps`` steps."""
        steps = min(max_steps, self.schedule.steps or max_steps)
        return replace(self, schedule=replace(self.schedule, minutes=0.0, steps=steps))


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe.

    Raises ``ValueError`` for keys that do not exist or values out of range, with the key's name.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from None
    return recipe_from(values)


def recipe_from(values: dict[str, Any]) -> Recipe:
    """Build a recipe from plain values, as :func:`load_recipe` reads them."""
    parts = {
        "schedule": Schedule,
        "model": Architecture,
        "optimiser": Optimiser,
        "batches": Batches,
        "correlation": Correlation,
    }
    built: dict[str, Any] = {}
    for key, value in values.items():
        if key == "contexts":
            if not isinstance(value, dict):
                raise ValueError("[contexts] must be a table")
            built[key] = {name: _section(ContextShape, f"contexts.{name}", v) for name, v in value.items()}
            continue
        built[key] = _section(parts[key], key, value) if key in parts else value
    if "name" not in built or "schedule" not in built:
        raise ValueError("a recipe needs a name and a [schedule]")
    return _section(Recipe, "recipe", built)  # type: ignore[no-any-return]


def _one_of(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _section(kind: Any, name: str, values: Any) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"[{name}] must be a table")
    known = {f.name: f.default for f in fields(kind)}
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"unknown key {key!r} in [{name}]; known: {', '.join(sorted(known))}")
        if type(known[key]) is int and type(value) is not int:
            raise ValueError(f"{key} in [{name}] must be a whole number, not {value!r}")
        if type(known[key]) is float and type(value) not in (int, float):
            raise ValueError(f"{key} in [{name}] must be a number, not {value!r}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"[{name}]: {error}") from None

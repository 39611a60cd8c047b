"""Encoder options: one frozen dataclass, checked in one place.  Imports neither torch nor NumPy."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pillow_lic.header import CONTEXTS, MAX_TILE, QUALITY_ONE, QUANTIZERS
from pillow_lic.warning import warn

QUALITY_MIN, QUALITY_MAX = 1.0, 8.0

EFFORT_MAX = 9

DEFAULT_CONTEXT = "staircase"
"""The best context model that decodes in at most 1.5 times the time of none (docs/benchmarks.md)."""

DEFAULT_LATTICE = "h24"
"""The quantiser of models that have tables for lattices, the best one that decodes as fast as the others do."""

FAST_CONTEXTS = ("checkerboard", "channel", "staircase")
"""What "auto" tries besides none: all that decode in at most 1.6 times the time."""


TARGETS = ("target_size", "target_bpp", "target_psnr")

TUNES = ("mse", "ms-ssim", "ssim")
"""Two shipped models, each named after the distortion that it is trained for, and a way of searching with any."""


@dataclass(frozen=True)
class EncoderOptions:
    """What ``save(...)`` may say about the coding itself.

    quality    float, 1 (smallest) to 8 (best), continuous; default 4
    target_size, target_bpp, target_psnr
               choose the quality: the best picture in at most so many bytes (metadata included) or
               bits a pixel, or the smallest file of at least so many dB; one of them, and it wins over quality
    context    context model: "none", "checkerboard", "channel", "staircase", "autoregressive" (slow), "volume"
               (slower), or "auto" to try all but the slow ones and keep the smallest file; None for "staircase"
               where the model has it, else "none"; at one quality without effort all decode to the same pixels
    quantizer  "scalar"; "h24", "bw16", "e8": groups of 24, sixteen or eight latents on half of Leech's lattice, that
               of Barnes and Wall, or E8, smaller files at some milliseconds; or "diamond": all latents of a position on
               whole or on half steps (LVQAC), in between; None for "h24" where the model has lattices, else "scalar"
    alpha_quality
               0 to 100: in how many levels transparency is kept; 100, the default: all of them
    exact      keep the colours of transparent pixels, which nobody sees; default False
    adaptive   True: take bits from where a picture looks good to where it looks worst, so that quality is even at the
               same size (Johnston 2018); "importance": let a network that was trained for it say where SSIM gains
               most (Li 2018); default False
    progressive
               in scans, those that bring most to the picture first, so that the beginning of a file opens as
               the whole picture (with ImageFile.LOAD_TRUNCATED_IMAGES); about 1 % larger, small files
               a little more; default False
    effort     0 (fast) to 9 (slow): how long the encoder searches for latents that look better or cost
               less; pictures take as long to decode as ever; default 0
    tune       what the shipped models are trained for: "mse" (PSNR) or "ms-ssim"; default "mse".  Or "ssim": the search
               weighs errors by how much SSIM loses by them, with any model of ours; effort is at least 1 then
    model      name of an installed model, or the path of a .safetensors file, instead of tune "mse" or "ms-ssim"
    device     "cpu", "cuda", "cuda:1", or None: CUDA where there is one and the picture is large
               enough to be worth it, else the CPU; PILLOW_LIC_DEVICE overrides None
    threads    CPU threads to work with, at least 1; None: as many as torch is set to
    tile       side in pixels of independently coded tiles, a multiple of 64 from 64 to 2048, or
               0 for one tile, up to about 4 megapixels; None: 512 above one megapixel

    Raises ``TypeError`` for values of the wrong kind and ``ValueError`` for those out of range.
    """

    quality: float = 4.0
    context: str | None = None
    quantizer: str | None = None
    effort: int = 0
    tune: str | None = None
    model: str | None = None
    device: str | None = None
    threads: int | None = None
    tile: int | None = None
    target_size: int | None = None
    target_bpp: float | None = None
    target_psnr: float | None = None
    alpha_quality: int = 100
    exact: bool = False
    adaptive: bool | str = False
    progressive: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "quality", _number("quality", self.quality))
        if not QUALITY_MIN <= self.quality <= QUALITY_MAX:
            raise ValueError(f"quality must be a number from 1 to 8, not {self.quality!r}")
        if self.context is not None:
            _choice("context", self.context, ("auto", *CONTEXTS))
        if self.quantizer is not None:
            _choice("quantizer", self.quantizer, QUANTIZERS)
        if not isinstance(self.adaptive, bool) and self.adaptive != "importance":
            kind = ValueError if isinstance(self.adaptive, str) else TypeError
            raise kind(f"adaptive must be True, False or 'importance', not {self.adaptive!r}")
        for name in ("progressive", "exact"):
            if (value := getattr(self, name)) not in (False, True):  # 1 is what a JPEG's info says
                raise TypeError(f"{name} must be True or False, not {value!r}")
            object.__setattr__(self, name, bool(value))
        object.__setattr__(self, "effort", _integer("effort", self.effort))
        if not 0 <= self.effort <= EFFORT_MAX:
            raise ValueError(f"effort must be a whole number from 0 to 9, not {self.effort}")
        if self.tune is not None:
            _choice("tune", self.tune, TUNES)
        if self.model is not None:
            object.__setattr__(self, "model", os.fspath(self.model))
            if not isinstance(self.model, str) or not self.model:
                raise TypeError("model must be a model's name or the path of a .safetensors file")
            if self.tune not in (None, "ssim"):
                raise ValueError("give either model or tune, not both: tune chooses among the shipped models")
        if self.device is not None and not isinstance(self.device, str):
            object.__setattr__(self, "device", str(self.device))
        object.__setattr__(self, "threads", checked_threads(self.threads))
        object.__setattr__(self, "alpha_quality", _integer("alpha_quality", self.alpha_quality))
        if not 0 <= self.alpha_quality <= 100:
            raise ValueError(f"alpha_quality must be a whole number from 0 to 100, not {self.alpha_quality}")
        self._check_tile()
        self._check_targets()

    def _check_targets(self) -> None:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}, not both")
        for name in given:
            value = getattr(self, name)
            value = _integer(name, value) if name == "target_size" else _number(name, value, "a number above 0")
            if value <= 0:
                raise ValueError(f"{name} must be above 0, not {value}")
            object.__setattr__(self, name, value)

    @property
    def target(self) -> tuple[str, float] | None:
        """The target given, if there is one: its name and value."""
        given = ((name, getattr(self, name)) for name in TARGETS)
        return next(((name, value) for name, value in given if value is not None), None)

    def _check_tile(self) -> None:
        if self.tile is None:
            return
        object.__setattr__(self, "tile", _integer("tile", self.tile))
        if self.tile % 64 or not 0 <= self.tile <= MAX_TILE:
            raise ValueError(f"tile must be 0 or a multiple of 64 from 64 to {MAX_TILE}, not {self.tile}")

    @property
    def model_name(self) -> str:
        """The model to encode with: a name or a path."""
        return self.model or (self.tune if self.tune != "ssim" else None) or TUNES[0]

    @property
    def search(self) -> tuple[int, str | None]:
        """How long to search, 0 to 9, and by which distortion, if not by the model's own."""
        return (max(1, self.effort), "ssim-sensitive") if self.tune == "ssim" else (self.effort, None)

    @property
    def quality_code(self) -> int:
        """Quality as files keep it: 256ths of a step above 1, in 0...1792."""
        return round((self.quality - QUALITY_MIN) * QUALITY_ONE)


def checked_threads(threads: int | None) -> int | None:
    """A number of threads as an int; ``TypeError`` if it is none, ``ValueError`` below 1."""
    if threads is None:
        return None
    number = _integer("threads", threads)
    if number < 1:
        raise ValueError(f"threads must be at least 1, not {number}")
    return number


def quality_of(code: int) -> float:
    """The quality that a file's code stands for."""
    return QUALITY_MIN + code / QUALITY_ONE


def set_defaults(**options: Any) -> None:
    """Change the defaults for this process, e.g. ``set_defaults(device="cpu", quality=5)``.

    Raises ``TypeError`` for a name that is no option, and as :class:`EncoderOptions` does.
    """
    global defaults
    unknown = sorted(set(options) - OPTION_NAMES)
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; known: {', '.join(sorted(OPTION_NAMES))}")
    defaults = _with_defaults(options)


def options_from(values: Mapping[str, Any], *, also_known: frozenset[str] = frozenset()) -> EncoderOptions:
    """Options of a save call; names that mean nothing here warn, as ``also_known`` ones do not."""
    known = {k: v for k, v in values.items() if k in OPTION_NAMES}
    for name in values:
        if name not in OPTION_NAMES and name not in also_known:
            import difflib

            near = difflib.get_close_matches(name, OPTION_NAMES | also_known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            warn(f"LIC ignores the unknown option {name!r}{hint}")
    return _with_defaults(known)


def _with_defaults(given: dict[str, Any]) -> EncoderOptions:
    """Options, and the defaults where they say nothing: what they say of the model replaces whatever the defaults say
    of it, and so with what decides the size.
    """
    if given.get("model") is not None and defaults.tune != "ssim":  # which goes with any model
        given = {"tune": None} | given
    if given.get("tune") not in (None, "ssim"):
        given = {"model": None} | given
    if any(given.get(name) is not None for name in ("quality", *TARGETS)):
        given = dict.fromkeys(TARGETS) | given
    return replace(defaults, **given)


def _number(name: str, value: Any, kind: str = "a number from 1 to 8") -> float:
    if isinstance(value, (bool, str, bytes)):
        raise TypeError(f"{name} must be {kind}, not {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be {kind}, not {value!r}") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be {kind}, not {value!r}")
    return number


def _integer(name: str, value: Any) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be an integer, not {value!r}")


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


OPTION_NAMES = frozenset(f.name for f in fields(EncoderOptions))

defaults = EncoderOptions()
"""What holds for options that a call does not name; change it with :func:`set_defaults`."""

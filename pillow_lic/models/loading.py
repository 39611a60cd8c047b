"""Trained models: one .safetensors file each, read by name or identity, checked, and kept in memory."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pillow_lic.devices import finish, on_threads
from pillow_lic.distortions import DISTORTIONS
from pillow_lic.entropy.context import ExactContext
from pillow_lic.entropy.exact import ExactHyperSynthesis
from pillow_lic.entropy.tables import Tables
from pillow_lic.entropy.volume import ExactVolume
from pillow_lic.models.compressai.family import Family, FamilyModel
from pillow_lic.models.context.network import ContextModel
from pillow_lic.models.context.schedule import HYPER, VOLUME, WHOLE, Division, channels_of, units_of
from pillow_lic.models.draft import Draft, load_draft
from pillow_lic.models.errors import ModelError, reading
from pillow_lic.models.finding import (
    SEARCH_PATH_VARIABLE,
    identity_of,
    identity_or_none,
    installed,
    is_shipped,
    manifest_of,
    path_of,
    user_models,
)
from pillow_lic.models.floats import float_hyper_synthesis, float_network
from pillow_lic.models.hyperprior import HyperAnalysis, HyperSynthesis
from pillow_lic.models.importance import ImportanceMap, load_importance
from pillow_lic.models.transforms import (
    QUALITIES,
    Analysis,
    Architecture,
    Synthesis,
    at_quality,
)
from pillow_lic.quantizers.lattice import KINDS

FORMAT = 1
MAX_TABLES = 255
"""Indices of tables are bytes, and one past the last is a limit."""

_INTEGERS = ("exact.", "tables.")
VOLUME_SUFFIX = ".volume"
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    # A child would wait for ever for a thread of its parent that was reading a model.
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
_loaded: dict[tuple[bytes, Path], AnyModel] = {}


@dataclass
class Model:
    """A loaded model.  Networks are made for a device and precision when first asked for.

    ``contexts`` are the context models of y; ``hyper`` divides the channels of z's, if it has one.
    """

    path: Path
    identity: bytes
    arch: Architecture
    tables: Tables
    exact: ExactHyperSynthesis
    tensors: dict[str, Tensor]
    contexts: dict[str, Division]
    distortion: str = "mse"
    lattice: int | None = None
    hyper: Division | None = None
    _made: dict[tuple[Any, ...], Any] = field(default_factory=dict, init=False)

    def at_quality(self, code: int) -> tuple[Model, int]:
        """The model for a quality code, and the code it stands for: one model has them all."""
        return self, code

    @property
    def has_lattice(self) -> bool:
        """Whether the model can code points of lattices."""
        return self.lattice is not None

    @property
    def lattice_index(self) -> int:
        """The first table index whose latents lie on a lattice; ``ValueError`` if the model has none."""
        if self.lattice is None:
            raise ValueError(f"the model {self.path.stem!r} has no tables for a lattice: its quantizer is 'scalar'")
        return self.lattice

    def analysis(self, device: torch.device, dtype: torch.dtype) -> Analysis:
        """The analysis transform; its blocks compute in ``dtype``, the rest in float32."""
        return self._network(Analysis, "analysis", device, dtype)  # type: ignore[no-any-return]

    def synthesis(self, device: torch.device, dtype: torch.dtype) -> Synthesis:
        """The synthesis transform, likewise."""
        return self._network(Synthesis, "synthesis", device, dtype)  # type: ignore[no-any-return]

    def draft(self, device: torch.device) -> Draft | None:
        """What makes pictures at 1/4 and 1/8 quickly, if there is a file of it beside the model's."""
        make = torch.inference_mode(False)(lambda: load_draft(self.path, self.identity, self.arch.latents, device))
        return self._cached(("draft", device), make)  # type: ignore[no-any-return]

    def hyper_analysis(self, device: torch.device, dtype: torch.dtype) -> HyperAnalysis:
        """h_a, all but its last layer in ``dtype``: what it finds is written to the file, so it need not be exact."""
        return self._network(HyperAnalysis, "hyper_analysis", device, dtype)  # type: ignore[no-any-return]

    def hyper_synthesis(self, device: torch.device) -> ExactHyperSynthesis:
        """h_s in integers."""

        def make() -> ExactHyperSynthesis:
            made = self.exact.to(device)
            made.prepare()
            return made

        return self._cached(("exact", device), make)  # type: ignore[no-any-return]

    def float_hyper_synthesis(self, device: torch.device) -> HyperSynthesis:
        """h_s to differentiate, by the float numbers that its integers stand for."""

        @torch.inference_mode(False)
        def make() -> HyperSynthesis:
            return float_hyper_synthesis(self.exact, self.arch).to(device)

        return self._cached(("float h_s", device), make)  # type: ignore[no-any-return]

    def context(self, name: str, device: torch.device) -> ExactContext:
        """A context model in integers, read from the model's file when it is first asked for.

        Raises ``ValueError`` if the model has none of that name or its file was replaced meanwhile.
        """
        also = (name == "none" and self.has_lattice) or (name == HYPER and self.hyper is not None)
        if name not in self.contexts and not also:
            known = ", ".join(map(repr, ("none", *self.contexts)))
            raise ValueError(f"the model {self.path.stem!r} has no context {name!r}; it has {known}")

        def make() -> ExactContext:
            if name == VOLUME:
                self._check_unchanged()
                return _read_volume(self, device)
            channels, hidden = channels_of(name, self.arch)
            division = self._division(name)
            units = units_of(name, channels, division)
            part = self._integers_of(name)
            made = ExactContext(units, part, len(self.tables), device, division.order(channels))
            made.check(hidden)
            return made

        return self._cached(("context", name, device), make)  # type: ignore[no-any-return]

    def float_context(self, name: str, device: torch.device) -> ContextModel:
        """A context model of y, or that of z, to differentiate, by the float numbers that its integers stand for.

        Raises ``ValueError`` if the model has none of that name, or one without units, as ``volume``.
        """

        @torch.inference_mode(False)
        def make() -> ContextModel:
            self.context(name, device)  # checks all that there is to check
            return float_network(name, self._integers_of(name), self._division(name), self.arch).to(device)

        return self._cached(("float context", name, device), make)  # type: ignore[no-any-return]

    def _division(self, context: str) -> Division:
        return (self.hyper if context == HYPER else self.contexts.get(context)) or WHOLE

    def _integers_of(self, context: str) -> dict[str, Tensor]:
        """The tensors of a context model by name; ``ValueError`` if the file was replaced meanwhile."""
        self._check_unchanged()
        prefix = f"context.{context}."
        with safe_open(self.path, framework="pt") as file:
            names = [n for n in file.keys() if n.startswith(prefix)]  # noqa: SIM118
            found = {n.removeprefix(prefix): file.get_tensor(n) for n in names}
        if any(tensor.is_floating_point() for tensor in found.values()):
            raise ValueError(f"the context {context!r} does not consist of integers")
        return found

    def _check_unchanged(self) -> None:
        if identity_of(self.path) != self.identity:
            raise ValueError(f"{self.path} was replaced while it was in use")

    def importance(self, device: torch.device) -> ImportanceMap:
        """The network that says where bits matter; ``ValueError`` if none lies beside the model's file."""

        def make() -> ImportanceMap | None:
            return load_importance(self.path, self.identity, self.arch.latents, device)

        made: ImportanceMap | None = self._cached(("importance", device), make)
        if made is None:
            raise ValueError(f"the model {self.path.stem!r} has no importance map; adaptive='importance' needs one")
        return made

    def gain(self, quality: float) -> Tensor:
        """Steps for each unit of y, (M, 1, 1) float32."""
        return self._gain("log_gain", quality)

    def inverse_gain(self, quality: float) -> Tensor:
        """Units of y for each step, (M, 1, 1) float32."""
        return self._gain("log_inverse_gain", quality)

    def _gain(self, name: str, quality: float) -> Tensor:
        row = at_quality(self.tensors[name].float(), torch.tensor([quality], dtype=torch.float32, device="cpu"))
        return row.exp()[0, :, None, None]

    def _network(self, kind: Any, name: str, device: torch.device, dtype: torch.dtype) -> Any:
        # Not inference tensors, even if the first user of the network is a decoder: encoders differentiate.
        @torch.inference_mode(False)
        def make() -> Any:
            with torch.device("meta"):
                network = kind(self.arch)
            state = {k.removeprefix(name + "."): v.float() for k, v in self.tensors.items() if k.startswith(name + ".")}
            network.load_state_dict(state, assign=True)
            network.to(device=device, memory_format=torch.channels_last)
            for part in kind.REDUCED:
                getattr(network, part).to(dtype)
            return network.eval().requires_grad_(False)

        return self._cached((name, device, dtype), make)

    def _cached(self, key: tuple[Any, ...], make: Any) -> Any:
        with _lock:
            if key not in self._made:
                with reading(self.path), on_threads():
                    self._made[key] = make()
                finish(key)
            return self._made[key]


AnyModel = Model | Family
"""What a model file holds."""

OneQuality = Model | FamilyModel
"""What a picture is coded with."""


def load_model(name: str) -> AnyModel:
    """The model of that name in the search path, or at that path if it ends in .safetensors.

    Raises ``ValueError`` if there is none, naming those there are, and :class:`ModelError` if an installed one is
    damaged or is not what its manifest describes.
    """
    path = path_of(name)
    if name.endswith(".safetensors"):
        if path is None:
            raise ValueError(f"there is no model file {name}")
        return _load(path)
    if path is not None:
        _check_manifest(path)
        return _load(path)
    known = sorted({p.stem for p in installed()})
    raise ValueError(f"no model {name!r} is installed; there are: {', '.join(known) or 'none'}")


def model_by_identity(identity: bytes, name: str = "") -> AnyModel:
    """The installed model that a file was written with.

    Raises ``OSError`` if it is not installed, which says where to put it, and its ``name`` if the file told it.
    """
    with _lock:
        known = [model for (own, _), model in _loaded.items() if own == identity]
        for model in known:
            if is_shipped(model.path) and identity_or_none(model.path) == identity:
                return model
        # Copies may lack what lies beside a model.  And large files are read whole to identify them: first those
        # whose manifests say that they are it.
        hexed = identity.hex()
        for path in sorted(installed(), key=lambda p: (manifest_of(p).get("identity") != hexed, not is_shipped(p))):
            if identity_or_none(path) == identity:
                return _load(path)
        if known:  # elsewhere, or the file is gone, which may not be needed any more
            return max(reversed(known), key=lambda model: identity_or_none(model.path) == identity)
    others = [p for p in installed() if p.stem == name]
    raise OSError(
        f"this LIC file was written with the model {f'{name!r} ' if name else ''}{identity.hex()}, which is not "
        f"installed{f' ({others[0]} is another one)' if others else ''}; "
        f"put its .safetensors file into {f'{own} or ' if (own := user_models()) else ''}"
        f"a folder named in {SEARCH_PATH_VARIABLE}"
    )


def verify(model: AnyModel) -> None:
    """Read everything that a model file holds; ``ValueError`` for what is damaged or not exact."""
    device = torch.device("cpu")
    if isinstance(model, Family):
        for stop in model.stops:
            model.at_quality(stop.code)[0].verify()
        return
    model.analysis(device, torch.float32), model.synthesis(device, torch.float32)
    model.hyper_analysis(device, torch.float32)
    for name in (*model.contexts, *([HYPER] if model.hyper else []), *(["none"] if model.has_lattice else [])):
        model.context(name, device)
    model.draft(device)
    load_importance(model.path, model.identity, model.arch.latents, device)


def _check_manifest(path: Path) -> None:
    identity = identity_of(path)
    said = None if (identity, path) in _loaded else manifest_of(path).get("identity")
    if said is not None and said != identity.hex():
        raise ModelError(f"{path} is damaged or was replaced: its manifest describes {said}, it is {identity.hex()}")


def _load(path: Path) -> AnyModel:
    """Read a model file; :class:`ModelError` if it is none or is not exact."""
    with _lock:
        identity = identity_of(path)
        if (identity, path) not in _loaded:  # of two copies each has files of its own beside it
            with reading(path), on_threads():
                _loaded[identity, path] = _read(path, identity)
        return _loaded[identity, path]


def _check_shapes(exact: Mapping[str, Tensor], arch: Architecture) -> None:
    """The integer layers are those of the float ones: as many inputs, outputs, taps, and biases by quality."""
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in HyperSynthesis(arch).state_dict().items()}
    wanted |= {n.replace(".weight", ".shift"): shape[:1] for n, shape in wanted.items() if n.endswith(".weight")}
    wanted |= dict.fromkeys(("z_inverse_gain", "z_mean", "z_index"), torch.Size((QUALITIES, arch.hyperlatents)))
    for name, shape in wanted.items():
        if exact[name].shape != shape:
            raise ValueError(f"exact.{name} has the shape {tuple(exact[name].shape)}, not {tuple(shape)}")


def _has_volume(path: Path, identity: bytes) -> bool:
    """Whether a context model over the volume lies beside a model: that of another model is none, a damaged one is
    told of when it is asked for.
    """
    beside = path.with_suffix(VOLUME_SUFFIX)
    try:
        with safe_open(beside, framework="pt") as file:
            return bool((file.metadata() or {}).get("model") == identity.hex())
    except (SafetensorError, OSError):
        return beside.is_file()


def _read_volume(model: Model, device: torch.device) -> ExactContext:
    """The context model beside a model's file; ``ValueError`` if it is damaged."""
    path = model.path.with_suffix(VOLUME_SUFFIX)
    with reading(path), safe_open(path, framework="pt") as file:
        tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
        if any(tensor.is_floating_point() for tensor in tensors.values()):
            raise ValueError("it does not consist of integers")
        made = ExactVolume(model.arch.latents, tensors, len(model.tables), device)
        made.check(model.arch.hyper_channels)
    return made


@torch.inference_mode(False)
def _read(path: Path, identity: bytes) -> AnyModel:
    with safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {}).get("pillow-lic", "{}"))
        if isinstance(about.get("architecture"), str) and about.get("format") == FORMAT:
            return Family.read(path, identity, about)
        # Context models are read when one is asked for.
        names = [name for name in file.keys() if not name.startswith("context.")]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} is not a model of this version (format {about.get('format')}, not {FORMAT})")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and (name.startswith(_INTEGERS) or not bool(torch.isfinite(tensor).all())):
            raise ValueError(f"{path} is damaged: {name} is not finite, or not of integers")
    arch = Architecture(**about["architecture"])
    part = {k.removeprefix("exact."): v for k, v in tensors.items() if k.startswith("exact.")}
    for name in ("log_gain", "log_inverse_gain"):
        if tensors[name].shape != (QUALITIES, arch.latents):
            raise ValueError(f"{path} is damaged: wrong shape of {name}")
    tables = Tables.mirrored(
        tensors["tables.frequencies"].numpy().astype(np.int32),
        tensors["tables.lengths"].numpy().astype(np.int32),
        int(about["skip"]),
    )
    kept = {k: v for k, v in tensors.items() if not k.startswith(("exact.", "tables."))}
    contexts = {name: Division(**shape) for name, shape in about.get("contexts", {}).items()}
    hyper = contexts.pop(HYPER, None)
    _check_shapes(part, arch)
    if len(tables) > MAX_TABLES:
        raise ValueError(f"{path} is damaged: it has {len(tables)} probability tables, more than {MAX_TABLES}")
    exact = ExactHyperSynthesis(part, len(tables))
    lattice, distortion = about.get("lattice"), about.get("distortion", "mse")
    # Whatever lies on a lattice is coded, though wider steps lower its scale index.
    first = tables.skip - min(kind.beyond + kind.level for kind in KINDS.values())
    if lattice is not None and (type(lattice) is not int or not first <= lattice < len(tables)):
        raise ValueError(f"{path} is damaged: impossible lattice")
    if distortion not in DISTORTIONS:
        raise ValueError(f"{path} is damaged: it was trained for an unknown distortion")
    if _has_volume(path, identity):
        contexts[VOLUME] = WHOLE
    return Model(path, identity, arch, tables, exact, kept, contexts, distortion, lattice, hyper)

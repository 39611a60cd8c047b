"""A family of published codecs in one model file: one network for each quality.

The file holds, for each quality by number, the float transforms and the integers of :mod:`.exact`, and
once for all the tables of Gaussians.  Latents follow the papers: rounded around their means, and where
there is a context, around the mean that it says.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from pillow_lic.devices import finish
from pillow_lic.entropy.coder import LIMIT as SYMBOL_LIMIT
from pillow_lic.entropy.coder import SymbolDecoder, SymbolEncoder, Symbols
from pillow_lic.entropy.exact import MEAN_BITS
from pillow_lic.entropy.tables import Tables
from pillow_lic.header import MAX_QUALITY_CODE, QUALITY_ONE
from pillow_lic.models.compressai.exact import (
    LIMIT,
    SCALE_BITS,
    Z_BITS,
    ExactHyper,
    PublishedContext,
    Wavefront,
    forms_of,
)
from pillow_lic.models.compressai.networks import ARCHITECTURES, Network, Published
from pillow_lic.models.compressai.synthesis import Synthesis
from pillow_lic.models.errors import reading
from pillow_lic.pixels import pad_to_multiple

HYPER_STRIDE = 4
FINE = 6 * QUALITY_ONE
"""Code of the quality from which on bfloat16 would cost more than 0.01 dB."""

MOST_CHANNELS = 2048
WIDEST = 256
"""Largest scale of the published codecs."""

_lock = threading.RLock()
if hasattr(os, "register_at_fork"):  # as in pillow_lic.models.loading
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@dataclass(frozen=True)
class Shape:
    """What tiles need to know of a network."""

    latents: int
    hyperlatents: int
    analysis_margin: int
    synthesis_margin: int


@dataclass(frozen=True)
class Stop:
    """A quality that a family has a network for; ``code`` as files keep it."""

    code: int
    channels: int
    latents: int


@dataclass(frozen=True)
class CodedLatents:
    """Symbols of z (N, h, w) and y (M, h, w), and means (64ths of a step) and tables' indices of y."""

    z: Symbols
    y: Symbols
    mean: Tensor
    index: Tensor


@dataclass
class Family:
    """Networks of one architecture, of which a quality chooses the nearest."""

    path: Path
    identity: bytes
    architecture: str
    stops: tuple[Stop, ...]
    tables: Tables
    thresholds: Tensor
    file: Any
    _made: dict[int, FamilyModel] = field(default_factory=dict, init=False)

    @classmethod
    def read(cls, path: Path, identity: bytes, about: Mapping[str, Any]) -> Family:
        """Take what all qualities have in common from a model file; ``ValueError`` if it is none."""
        architecture = about["architecture"]
        if architecture not in ARCHITECTURES:
            raise ValueError(f"{path} has the architecture {architecture!r}, which needs a newer pillow-lic")
        stops = tuple(Stop(int(s["code"]), int(s["channels"]), int(s["latents"])) for s in about["stops"])
        codes = [s.code for s in stops]
        if not codes or codes != sorted(set(codes)) or not 0 <= codes[0] <= codes[-1] <= MAX_QUALITY_CODE:
            raise ValueError(f"{path} is damaged: impossible qualities")
        if any(not 1 <= n <= MOST_CHANNELS for s in stops for n in (s.channels, s.latents)):
            raise ValueError(f"{path} is damaged: impossible numbers of channels")
        file: Any = safe_open(path, framework="pt")  # stays open: a path may lead to another file by the next quality
        frequencies, lengths, thresholds = (
            file.get_tensor(name) for name in ("tables.frequencies", "tables.lengths", "thresholds")
        )
        tables = Tables.mirrored(frequencies.numpy().astype(np.int32), lengths.numpy().astype(np.int32), 0)
        if thresholds.is_floating_point() or len(thresholds) != len(tables) - 1 or bool((thresholds.diff() <= 0).any()):
            raise ValueError(f"{path} is damaged: impossible thresholds of scales")
        if int(thresholds[-1]) > WIDEST << SCALE_BITS:  # scales once had two bits more
            raise ValueError(f"{path} has another version's arithmetic: import its checkpoints again")
        return cls(path, identity, architecture, stops, tables, thresholds.double(), file)

    @property
    def name(self) -> str:
        """The name that the model is asked for by."""
        return self.path.stem

    @property
    def contexts(self) -> tuple[str, ...]:
        """The one way to code the latents, by the name that files give it."""
        return ("autoregressive",) if ARCHITECTURES[self.architecture].context else ("none",)

    def at_quality(self, code: int) -> tuple[FamilyModel, int]:
        """The network of the nearest quality, and that quality's code."""
        number, stop = min(enumerate(self.stops), key=lambda item: (abs(item[1].code - code), item[0]))
        with _lock:
            if number not in self._made:
                with reading(self.path):
                    self._made[number] = FamilyModel(self, number, stop)
            return self._made[number], stop.code


class FamilyModel:
    """The network of one quality.  Parts are read from the file when they are first asked for."""

    def __init__(self, family: Family, number: int, stop: Stop) -> None:
        self.family, self._prefix, self._code = family, f"{number}.", stop.code
        self.kind: Published = ARCHITECTURES[family.architecture]
        self.path, self.tables = family.path, family.tables
        self.contexts = family.contexts
        with torch.device("meta"):
            self._network = Network(family.architecture, stop.channels, stop.latents)
        hyperlatents = stop.channels if self.kind.hyperprior else 0
        self.arch = Shape(stop.latents, hyperlatents, self.kind.analysis_margin, self.kind.synthesis_margin)
        tensors = self._tensors("bottleneck.")
        self.learned = Tables.whole(
            tensors["frequencies"].numpy().astype(np.int32), tensors["lengths"].numpy().astype(np.int32)
        )
        self.medians = tensors["medians"].to(torch.int64)
        if len(self.learned) != (hyperlatents or stop.latents) or self.medians.shape != (len(self.learned),):
            raise ValueError(f"{self.path} is damaged: wrong number of learned tables")
        self._made: dict[tuple[Any, ...], Any] = {}

    def verify(self) -> None:
        """Read all parts; ``ValueError`` for what is damaged or not exact."""
        device = torch.device("cpu")
        self.synthesis(device, torch.float32)
        for name in ("g_a", "h_a")[: 2 if self.kind.hyperprior else 1]:
            self._part(name, device)
        if self.kind.hyperprior:
            self._cached(("hyper", device), lambda: self._exact_hyper(device))
        if self.kind.context:
            self._cached(("context", device), lambda: self._context(device))

    # -- transforms ----------------------------------------------------------------------------

    def analysis(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Pixels in -127.5...127.5 and a quality (which is the network's own) to y, in steps."""
        network = self._part("g_a", device)
        return lambda pixels, quality: network((pixels + 127.5) / 255)

    def synthesis(self, device: torch.device, dtype: torch.dtype) -> Any:
        """y to pixels, likewise; at ``scale`` 2, 4 or 8 means of so many in both directions."""
        dtype = torch.float32 if self._code >= FINE else dtype
        network: Synthesis = self._cached(("g_s", device, dtype), lambda: self._synthesis(device, dtype))

        def pixels(y: Tensor, quality: Tensor, scale: int = 1) -> Tensor:
            found = network(y).mul_(255).sub_(127.5)
            return nn.functional.avg_pool2d(found, scale) if scale > 1 else found

        return pixels

    def gain(self, quality: float) -> Tensor:
        """Steps for each unit of y: one."""
        return torch.ones((self.arch.latents, 1, 1), dtype=torch.float32, device="cpu")

    inverse_gain = gain

    # -- symbols -------------------------------------------------------------------------------

    def quantise(self, y: Tensor) -> CodedLatents:
        """Symbols for latents (1, M, h, w)."""
        h, w = y.shape[2:]
        device = y.device
        if not self.kind.hyperprior:
            mean, index = self._factorized(h, w, device)
            return CodedLatents(_NOTHING, _symbols(y[0] - mean.to(y.dtype) / 2**MEAN_BITS), mean, index)
        padded = pad_to_multiple(y, HYPER_STRIDE)
        z = self._part("h_a", device)(padded if self.kind.means else padded.abs())[0]
        medians = self.medians.to(z)[:, None, None] / 2**Z_BITS
        z_symbols = _symbols(z - medians)
        hyper = self._hyper(z_symbols, h, w, device)
        if not self.kind.context:
            mean, index = self._conditions(hyper)
            return CodedLatents(z_symbols, _symbols(y[0] - mean.to(y.dtype) / 2**MEAN_BITS), mean, index)
        target = y[0].flatten(1).t().double()

        def rounded(at: Tensor, mean: Tensor, index: Tensor) -> Tensor:
            return torch.from_numpy(_symbols(target[at] - mean.to(target.dtype) / 2**MEAN_BITS)).to(device)

        return CodedLatents(z_symbols, *self._along(hyper, rounded))

    def check(self, context: str, quantizer: str, adaptive: bool) -> None:
        """Raise ``OSError`` for a header that no encoder writes."""
        if (context,) != self.contexts or quantizer != "scalar" or adaptive:
            raise OSError("damaged LIC file: its header does not belong to its model")

    def write(self, coder: SymbolEncoder, coded: CodedLatents) -> None:
        """Append a tile's symbols."""
        index = coded.index.cpu().numpy()
        if not self.kind.hyperprior:
            coder.encode(coded.y.ravel(), index.ravel(), self.learned)
            return
        coder.encode(coded.z.ravel(), _by_channel(coded.z.shape).ravel(), self.learned)
        if not self.kind.context:
            coder.encode(coded.y.ravel(), index.ravel(), self.tables)
            return
        latents, h, w = coded.y.shape
        y, index = coded.y.reshape(latents, -1), index.reshape(latents, -1)
        for at in Wavefront(1, h, w, torch.device("cpu")).positions:
            some = at.numpy()
            coder.encode(y[:, some].T.ravel(), index[:, some].T.ravel(), self.tables)

    def read(self, coder: SymbolDecoder, h: int, w: int, device: torch.device) -> CodedLatents:
        """Read a tile's symbols, h x w positions."""
        if not self.kind.hyperprior:
            mean, index = self._factorized(h, w, device)
            y = coder.decode(index.cpu().numpy().ravel(), self.learned)
            return CodedLatents(_NOTHING, y.reshape(index.shape), mean, index)
        shape = (self.arch.hyperlatents, -(-h // HYPER_STRIDE), -(-w // HYPER_STRIDE))
        z = coder.decode(_by_channel(shape).ravel(), self.learned).reshape(shape)
        hyper = self._hyper(z, h, w, device)
        if not self.kind.context:
            mean, index = self._conditions(hyper)
            y = coder.decode(index.cpu().numpy().ravel(), self.tables)
            return CodedLatents(z, y.reshape(index.shape), mean, index)

        def decoded(at: Tensor, mean: Tensor, index: Tensor) -> Tensor:
            values = coder.decode(index.cpu().numpy().ravel(), self.tables)
            return torch.from_numpy(values.reshape(tuple(index.shape))).to(device)

        return CodedLatents(z, *self._along(hyper, decoded))

    def _along(self, hyper: Tensor, symbols_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Any:
        """y, means and indices, wave by wave: the one schedule of encoder and decoder.

        ``symbols_of`` tells the symbols (P, M) of some positions, given their means and indices.
        """
        device, (_, h, w), latents = hyper.device, hyper.shape, self.arch.latents
        network = self._cached(("context", device), lambda: self._context(device))
        said = hyper.clamp(-LIMIT, LIMIT).to(torch.int16).flatten(1).t().contiguous()
        waves = Wavefront(latents, h, w, device)
        parts = []
        for at, place, windows in waves:
            mean, index = self._conditions(network(windows, said.index_select(0, at)), 1)
            values = symbols_of(at, mean, index)
            waves.put(place, values.int() * 2**MEAN_BITS + mean)
            parts.append((values, mean, index))
        back = torch.argsort(torch.cat(waves.positions))
        together = (torch.cat(of_waves).index_select(0, back) for of_waves in zip(*parts, strict=True))
        y, mean, index = (x.t().reshape(latents, h, w) for x in together)
        return y.cpu().numpy(), mean, index

    def _factorized(self, h: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
        shape = (self.arch.latents, h, w)
        mean = ((self.medians + (1 << Z_BITS - MEAN_BITS - 1)) >> Z_BITS - MEAN_BITS).to(device, torch.int32)
        return mean[:, None, None].expand(shape), torch.from_numpy(_by_channel(shape).copy()).to(device)

    def _hyper(self, z: Symbols, h: int, w: int, device: torch.device) -> Tensor:
        """What the hyper-synthesis says of decoded hyperlatents, (C, h, w) integers."""
        network = self._cached(("hyper", device), lambda: self._exact_hyper(device))
        values = torch.from_numpy(z.astype(np.int64) << Z_BITS) + self.medians[:, None, None]
        return network(values.to(device))[:, :h, :w]  # type: ignore[no-any-return]

    def _conditions(self, parameters: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
        """Means and tables' indices from parameters: scales along ``dim``, then means where there are any."""
        scale = parameters.narrow(dim, 0, self.arch.latents).contiguous()
        index = torch.bucketize(scale, self.family.thresholds.to(scale)).to(torch.uint8)
        if not self.kind.means:
            return torch.zeros_like(scale, dtype=torch.int32), index
        return parameters.narrow(dim, self.arch.latents, self.arch.latents).to(torch.int32), index

    # -- parts ---------------------------------------------------------------------------------

    def _exact_hyper(self, device: torch.device) -> ExactHyper:
        return ExactHyper(self._tensors("exact."), [form for form, _ in forms_of(self._network.h_s)], device)

    def _context(self, device: torch.device) -> PublishedContext:
        forms = [form for form, _ in forms_of(self._network.entropy_parameters)]
        return PublishedContext(self._tensors("exact."), forms, device)

    def _part(self, name: str, device: torch.device) -> nn.Module:
        return self._cached((name, device), lambda: self._loaded(name, device))  # type: ignore[no-any-return]

    @torch.inference_mode(False)  # not inference tensors, even if the first user of the network is a decoder
    def _loaded(self, name: str, device: torch.device) -> nn.Sequential:
        with torch.device("meta"):
            whole = Network(self.family.architecture, self._network.channels, self._network.latents)
        part: nn.Sequential = getattr(whole, name)
        part.load_state_dict(self._tensors(f"{name}."), assign=True)
        part.to(device=device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return part.eval().requires_grad_(False)

    @torch.inference_mode(False)
    def _synthesis(self, device: torch.device, dtype: torch.dtype) -> Synthesis:
        return Synthesis(self._loaded("g_s", device), dtype)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a part of this quality, by their names in it."""
        prefix = self._prefix + name
        file = self.family.file
        found = {n.removeprefix(prefix): file.get_tensor(n) for n in file.keys() if n.startswith(prefix)}  # noqa: SIM118
        for key, tensor in found.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{self.path} is damaged: {prefix}{key} is not finite")
        return found

    def _cached(self, key: tuple[Any, ...], make: Any) -> Any:
        with _lock:
            if key not in self._made:
                with reading(self.path):
                    self._made[key] = make()
                finish(key)
            return self._made[key]


_NOTHING = np.zeros((0, 0, 0), np.int16)


def _symbols(steps: Tensor) -> Symbols:
    """Whole steps; ``ValueError`` if one is more than a symbol can say."""
    whole = steps.round()
    if whole.numel() and float(whole.abs().max()) > SYMBOL_LIMIT:
        raise ValueError(f"a latent is larger than {SYMBOL_LIMIT} steps; use a lower quality")
    found: Symbols = whole.to(torch.int16).cpu().numpy()
    return found


def _by_channel(shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Tables' indices where each channel has its own."""
    return np.broadcast_to(np.arange(shape[0], dtype=np.uint16)[:, None, None], shape)

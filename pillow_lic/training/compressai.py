"""CompressAI's checkpoints to a model file: one family, exact, with what exactness costs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from pillow_lic import atomic
from pillow_lic.bench.measure import centre
from pillow_lic.entropy.exact import MEAN_BITS
from pillow_lic.entropy.tables import Tables
from pillow_lic.header import QUALITY_ONE
from pillow_lic.models.compressai.checkpoint import read_checkpoint
from pillow_lic.models.compressai.convert import Calibration, integers_of
from pillow_lic.models.compressai.exact import SCALE_BITS, Z_BITS
from pillow_lic.models.compressai.family import HYPER_STRIDE, Family, FamilyModel
from pillow_lic.models.compressai.networks import Bottleneck, Network
from pillow_lic.pictures import image_files, load_rgb
from pillow_lic.pixels import pad_to_multiple
from pillow_lic.training.export import write_manifest
from pillow_lic.training.probabilities import gaussian_masses, mirrored_integers, whole_integers

FORMAT = 1
SCALE_MIN, SCALE_MAX, SCALES = 0.11, 256.0, 64
"""The ladder of standard deviations of the published codecs."""

LIKELIHOOD_MIN = 1e-9
MOST_PICTURES = 8
SIDE = 512
"""Pixels a side of what is taken of a calibration picture."""

MOST_REACH = 4095
BEYOND = 1e-7
"""Probability of the symbols that a learned table leaves to its escape."""

MOST_COST = 0.5
"""Percent of the rate that integers may cost before an import warns."""


@dataclass(frozen=True)
class Imported:
    """What became of a checkpoint: its network's numbers, and the bits of measured pictures by the float
    network's likelihoods and by the integers and tables that replace them.
    """

    quality: float
    checkpoint: str
    channels: int
    latents: int
    float_bits: float
    integer_bits: float

    @property
    def cost(self) -> float:
        """What exactness costs, in percent of the rate."""
        return 100 * (self.integer_bits / self.float_bits - 1)


def qualities_of(checkpoints: Sequence[str]) -> dict[float, Path]:
    """Checkpoints by quality.  Each is ``QUALITY=PATH``, or a path whose name says the quality as the
    published files' do (``mbt2018-mean-3-….pth.tar``); a single one may say nothing.

    Raises ``ValueError`` where the quality cannot be told, is not 1 to 8, or is another one's too.
    """
    found: dict[float, Path] = {}
    for given in checkpoints:
        said, _, rest = given.partition("=") if re.match(r"[0-9.]+=", given) else ("", "", given)
        path = Path(rest)
        # The last number between dashes: architectures have numbers in their names, too.
        numbers = re.findall(r"(?<=-)([1-8])(?=[-.])", re.sub(r"mbt2018|bmshj2018|cheng2020", "", path.name))
        if not said and not numbers and len(checkpoints) > 1:
            raise ValueError(f"the quality of {path} cannot be told from its name; write QUALITY={path}")
        try:
            quality = float(said or (numbers[-1] if numbers else 4))
        except ValueError:
            raise ValueError(f"{said!r} is no quality; write a number from 1 to 8 before {path}") from None
        if not 1 <= quality <= 8:
            raise ValueError(f"the quality of {path} must be a number from 1 to 8, not {quality:g}")
        if (same := next((q for q in found if _code(q) == _code(quality)), None)) is not None:
            raise ValueError(f"{found[same]} and {path} are both of quality {quality:g}; a family has one of each")
        found[quality] = path
    return dict(sorted(found.items()))


def _code(quality: float) -> int:
    return round((quality - 1) * QUALITY_ONE)


def import_checkpoints(
    checkpoints: Sequence[str | os.PathLike[str]],
    architecture: str,
    output: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    progress: Callable[[Imported], None] = lambda _: None,
) -> list[Imported]:
    """Make a model file of CompressAI checkpoints, and its manifest beside it (.json).

    ``checkpoints`` are paths as :func:`qualities_of` takes them, of one ``architecture``: one of
    :data:`pillow_lic.models.compressai.networks.ARCHITECTURES`.  ``images`` is a folder whose pictures show
    how large activations become, eight of them at most, and on which the cost is measured; without it
    pictures of noise with the spectrum of photographs do.  ``progress`` hears of each quality when it is done.

    Raises ``ValueError`` for checkpoints that are damaged, of another architecture or of one quality, naming
    the file and the key; nothing is written then.
    """
    target = Path(output)
    if target.suffix != ".safetensors":
        raise ValueError(f"the model file must end in .safetensors, not {target.suffix or target.name!r}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to write {target.name} into")
    sources = qualities_of([os.fspath(c) for c in checkpoints])
    if not sources:
        raise ValueError("there is no checkpoint to import")
    networks = {quality: read_checkpoint(path, architecture) for quality, path in sources.items()}
    pictures = _pictures(Path(images)) if images is not None else [_noise(seed) for seed in range(4)]
    tensors = _common()
    stops = []
    with torch.inference_mode():
        for number, (quality, network) in enumerate(networks.items()):
            tensors |= {f"{number}.{k}": v for k, v in _converted(network, pictures[::2]).items()}
            stops.append({
                "code": _code(quality), "channels": network.channels, "latents": network.latents,
            })  # fmt: skip
    about = {"format": FORMAT, "architecture": architecture, "stops": stops}
    data = save(tensors, metadata={"pillow-lic": json.dumps(about, sort_keys=True)})
    identity = hashlib.sha256(data).digest()[:8]
    report = []
    # Where a file that is mapped into memory cannot be removed, it stays.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        tried = Path(folder, target.name)
        tried.write_bytes(data)
        family = Family.read(tried, identity, about)
        for quality, network in networks.items():
            model = family.at_quality(_code(quality))[0]
            bits = np.sum([_bits(network, model, x) for x in pictures[1::2] or pictures], axis=0)
            report.append(Imported(quality, sources[quality].name, network.channels, network.latents, *bits.tolist()))
            progress(report[-1])
    target.with_suffix(".json").unlink(missing_ok=True)  # it tells of what is replaced now
    atomic.write(str(target), data)
    _write_manifest(target, identity, architecture, report, images is not None)
    return report


def _converted(network: Network, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
    """All tensors of one quality."""
    found = {k: v for k, v in network.state_dict().items() if k.startswith(("g_a.", "g_s.", "h_a."))}
    frequencies, lengths = learned_tables(network.entropy_bottleneck)
    found["bottleneck.frequencies"], found["bottleneck.lengths"] = map(torch.from_numpy, (frequencies, lengths))
    found["bottleneck.medians"] = torch.round(network.entropy_bottleneck.medians * 2**Z_BITS).to(torch.int32)
    if network.kind.hyperprior:
        calibration = Calibration(network)
        medians = network.entropy_bottleneck.medians[:, None, None]
        for picture in pictures:
            y = pad_to_multiple(network.g_a(picture), HYPER_STRIDE)
            calibration.see(torch.round(network.hyperlatents(y) - medians) + medians, torch.round(y))
        found |= {f"exact.{k}": v for k, v in integers_of(network, calibration).items()}
    return {k: v.contiguous() for k, v in found.items()}


def _bits(network: Network, model: FamilyModel, picture: Tensor) -> tuple[float, float]:
    """Bits of a picture's symbols by the float network's likelihoods, and by the model's tables."""
    y = pad_to_multiple(network.g_a(picture), HYPER_STRIDE)
    coded = model.quantise(y)
    index = coded.index.numpy().astype(np.uint16)
    decoded = torch.from_numpy(coded.y.astype(np.float32)) + coded.mean / 2**MEAN_BITS
    density = network.entropy_bottleneck
    if not network.kind.hyperprior:
        return _learned_bits(density, decoded), float(model.learned.bits(coded.y, index).sum())
    z = torch.from_numpy(coded.z.astype(np.float32)) + density.medians[:, None, None]
    mean, scale = network.conditional(z[None], decoded[None])
    scale = scale.clamp(min=SCALE_MIN)
    distance = (decoded[None] - mean).abs()
    # P(|x - d| < 1/2) from the far tails, where differences of cumulatives keep their digits.
    near, far = (torch.erfc((distance + d) / (scale * 2**0.5)) / 2 for d in (-0.5, 0.5))
    floats = -torch.log2((near - far).clamp(min=LIKELIHOOD_MIN)).double().sum()
    channels = np.broadcast_to(np.arange(len(coded.z), dtype=np.uint16)[:, None, None], coded.z.shape)
    integers = model.tables.bits(coded.y, index).sum() + model.learned.bits(coded.z, channels).sum()
    return _learned_bits(density, z) + float(floats), float(integers)


def _learned_bits(density: Bottleneck, values: Tensor) -> float:
    return float(-torch.log2(density(values.flatten(1)).clamp(min=LIKELIHOOD_MIN)).double().sum())


def _common() -> dict[str, Tensor]:
    """What all qualities share: a table for each scale, and where between scales an index changes."""
    ladder = SCALE_MIN * (SCALE_MAX / SCALE_MIN) ** (np.arange(SCALES) / (SCALES - 1))
    halves = [mirrored_integers(gaussian_masses(s, int(np.ceil(6 * s)) + 2)) for s in ladder.tolist()]
    thresholds = np.rint(np.sqrt(ladder[1:] * ladder[:-1]) * 2**SCALE_BITS).astype(np.int32)
    arrays = {
        "tables.frequencies": np.concatenate(halves),
        "tables.lengths": np.array([h.size for h in halves], np.int32),
        "thresholds": thresholds,
    }
    return {k: torch.from_numpy(v) for k, v in arrays.items()}


def learned_tables(density: Bottleneck) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Frequencies and lengths of a table for each channel, as :meth:`Tables.whole` takes them, over whole
    steps from the channel's median.
    """
    exact = Bottleneck(len(density.medians)).double()
    exact.load_state_dict(density.state_dict())
    reach = 15
    while True:
        steps = torch.arange(-reach - 0.5, reach + 1, dtype=torch.float64)
        logits = exact.logits(exact.medians[:, None] + steps)
        edges = torch.sigmoid(logits), torch.sigmoid(-logits)  # below and above each edge
        outside = edges[0][:, : reach + 1].flip(1) + edges[1][:, reach + 1 :]  # by reach 0 ...
        if reach >= MOST_REACH or bool((outside[:, -1] < BEYOND).all()):
            break
        reach = 2 * reach + 1
    # Differences of whichever is smaller keep their digits.
    masses = torch.where(logits[:, :-1] > 0, -edges[1].diff(), edges[0].diff()).clamp(min=0).detach().numpy()
    tables = []
    for mass, beyond in zip(masses, outside.detach().numpy(), strict=True):
        own = max(1, int(np.argmax(beyond < BEYOND)) if beyond[-1] < BEYOND else reach)
        kept = np.append(mass[reach - own : reach + own + 1], beyond[own])
        tables.append(whole_integers(kept / kept.sum()))
    frequencies, lengths = np.concatenate(tables), np.array([t.size for t in tables], np.int32)
    Tables.whole(frequencies, lengths)
    return frequencies, lengths


def _pictures(folder: Path) -> list[Tensor]:
    """Some pictures of a folder, spread over it, (1, 3, H, W) in 0...1, the middle of large ones."""
    paths = image_files(folder)
    chosen = [paths[n] for n in np.unique(np.linspace(0, len(paths) - 1, MOST_PICTURES).round().astype(int))]
    found = []
    for path in chosen:
        part = centre(load_rgb(path), SIDE)
        part = np.pad(part, ((0, -part.shape[0] % 16), (0, -part.shape[1] % 16), (0, 0)), mode="edge")
        found.append(torch.from_numpy(part).permute(2, 0, 1)[None].float() / 255)
    return found


def _noise(seed: int) -> Tensor:
    """A picture of noise with the spectrum of photographs, (1, 3, 256, 256) in 0...1."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)) + 1 / 256
    waves = np.fft.irfft2(np.fft.rfft2(random.standard_normal((3, 256, 256))) / frequency)
    waves = waves[:1] + 0.3 * waves[1:].repeat(2, axis=0)[:3]
    pixels = np.clip(0.5 + 0.25 * waves / waves.std(), 0, 1)
    return torch.from_numpy(pixels)[None].float()


def _write_manifest(
    target: Path, identity: bytes, architecture: str, report: Sequence[Imported], photographs: bool
) -> None:
    values: dict[str, Any] = {
        "name": target.stem,
        "identity": identity.hex(),
        "format": FORMAT,
        "architecture": architecture,
        "source": "CompressAI checkpoints",
        "calibration": "images" if photographs else "noise",
        "qualities": [asdict(r) | {"cost_percent": round(r.cost, 4)} for r in report],
    }
    write_manifest(target.with_suffix(".json"), values)

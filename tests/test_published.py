"""The published codecs: CompressAI's checkpoints as models."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pixels_of, psnr, threads
from PIL import Image

from pillow_lic import container, transcode
from pillow_lic.codec.decoding import decode
from pillow_lic.devices import block_dtype
from pillow_lic.entropy import layers
from pillow_lic.entropy.exact import MEAN_BITS
from pillow_lic.models import loading
from pillow_lic.models.compressai import layers as compressai_layers
from pillow_lic.models.compressai import synthesis
from pillow_lic.models.compressai.checkpoint import read_checkpoint
from pillow_lic.models.compressai.convert import Calibration, integers_of
from pillow_lic.models.compressai.exact import LIMIT, SCALE_BITS, Form, Linear, Wavefront
from pillow_lic.models.compressai.family import Family, FamilyModel
from pillow_lic.models.compressai.networks import ARCHITECTURES, Network
from pillow_lic.models.loading import load_model, model_by_identity
from pillow_lic.pixels import tiles_of
from pillow_lic.symbols import CodedTile, decode_symbols
from pillow_lic.training.compressai import import_checkpoints, learned_tables

CPU = torch.device("cpu")
HERE = Path(__file__).parent
CHECKPOINTS = {
    "bmshj2018-factorized": ["bmshj2018-factorized-3"],
    "bmshj2018-hyperprior": ["bmshj2018-hyperprior-3"],
    "mbt2018-mean": ["mbt2018-mean-2", "mbt2018-mean-5"],
    "mbt2018": ["mbt2018-3"],
    "cheng2020-anchor": ["cheng2020-anchor-3"],
}
WITH_CONTEXT = ("mbt2018", "cheng2020-anchor")


def checkpoint(name: str) -> Path:
    return HERE / "published" / f"{name}.pth.tar"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all five architectures as model files."""
    found = tmp_path_factory.mktemp("models")
    for architecture, names in CHECKPOINTS.items():
        import_checkpoints([checkpoint(n) for n in names], architecture, found / f"{architecture}.safetensors",
                           images=HERE / "images")  # fmt: skip
    return found


@pytest.fixture(autouse=True)
def _installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(folder))


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    with Image.open(HERE / "images" / "astronaut.png") as image:
        return image.convert("RGB").crop((0, 0, 200, 152))


def saved(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "LIC", **options)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def one(architecture: str, code: int = 0) -> FamilyModel:
    family = load_model(architecture)
    assert isinstance(family, Family)
    return family.at_quality(code)[0]


def tile_of(data: bytes) -> CodedTile:
    """The symbols of a file of one tile; ``OSError`` if they fail their checksum."""
    reader = container.Reader(io.BytesIO(data))
    reader.metadata()
    header, (frame,) = reader.header, list(reader.frames())
    (place,) = tiles_of(header.width, header.height, header.tile)
    family = model_by_identity(header.model_id)
    return decode_symbols(family.at_quality(header.quality_code)[0], header, place, frame.tiles[0], CPU)


def distortion(a: Image.Image, b: Image.Image) -> float:
    return float(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_save_and_open(architecture: str, photo: Image.Image) -> None:
    data = saved(photo, model=architecture)
    image = opened(data)
    assert (image.size, image.mode) == (photo.size, "RGB")
    assert distortion(image, photo) < 450  # the checkpoints are small and trained for minutes
    assert len(data) < 3000
    assert image.info["context"] == ("autoregressive" if architecture in WITH_CONTEXT else "none")
    assert image.info["quantizer"] == "scalar"
    assert saved(photo, model=architecture) == data


@pytest.fixture
def precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Lets transforms compute in float32 or bfloat16."""

    def choose(name: str) -> None:
        monkeypatch.setenv("PILLOW_LIC_PRECISION", name)
        block_dtype.cache_clear()

    yield choose
    block_dtype.cache_clear()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pixels_are_those_of_the_float_network(
    architecture: str, photo: Image.Image, precision: Callable[[str], None]
) -> None:
    """The checkpoint's own analysis, rounded around the means that the file says, through its own synthesis."""
    network = read_checkpoint(checkpoint(CHECKPOINTS[architecture][-1]), architecture)
    picture = photo.crop((0, 0, 192, 128))
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    data = saved(picture, model=architecture, quality=8)
    tile = tile_of(data)
    decoded = torch.from_numpy(tile.y.astype(np.float32)) + tile.priors.mean / 2**MEAN_BITS
    with torch.inference_mode():
        y = network.g_a(x)[0]
        expected = network.g_s(decoded[None])[0].permute(1, 2, 0).clamp(0, 1).numpy() * 255
    assert float((decoded - y).abs().max()) < 0.5001
    precision("float32")
    assert np.abs(np.asarray(opened(data), float) - expected).max() < 0.51
    precision("bfloat16")
    errors = np.asarray(opened(data), float) - expected
    assert 0.51 < np.abs(errors).max() < 3
    assert np.square(errors).mean() < 0.2  # of which 0.08 are rounding to whole numbers


def test_high_qualities_stay_in_float32(photo: Image.Image, tmp_path: Path, precision: Callable[[str], None]) -> None:
    model = tmp_path / "fine.safetensors"
    import_checkpoints([f"{q}={checkpoint('mbt2018-mean-5')}" for q in (6, 7)], "mbt2018-mean", model)
    for quality, same in ((6, False), (7, True)):
        data, found = saved(photo, model=model, quality=quality), []
        for name in ("float32", "bfloat16"):
            precision(name)
            found.append(np.asarray(opened(data)))
        assert np.array_equal(*found) == same


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["mbt2018", "cheng2020-anchor"])
def test_the_synthesis_in_bands(architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of pixels and of positions, one channel and several, are the layers one by one."""
    torch.manual_seed(5)
    network = Network(architecture, 4, 1 if architecture == "mbt2018" else 4).requires_grad_(False)
    y = 3 * torch.randn(2, network.latents, 5, 3)
    expected = copy.deepcopy(network.g_s)(y)
    monkeypatch.setattr(synthesis, "_BAND", 72)
    monkeypatch.setattr(compressai_layers, "_AT_ONCE", 7)
    found = synthesis.Synthesis(copy.deepcopy(network.g_s), dtype)(y)
    assert float((found - expected).abs().max()) < (1e-5 if dtype is torch.float32 else 0.03)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_symbols_with_any_number_of_threads(architecture: str, photo: Image.Image) -> None:
    data = saved(photo, model=architecture)
    expected = tile_of(data).y
    assert np.abs(expected).max() > 0
    for count in (1, 3):
        with threads(count):
            assert np.array_equal(tile_of(data).y, expected)


@pytest.mark.skipif(not layers.bytes_work(), reason="this CPU has no products of bytes")
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "bmshj2018-factorized"])
def test_the_same_symbols_without_products_of_bytes(
    architecture: str, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved(photo, model=architecture)
    monkeypatch.setattr(layers, "bytes_work", lambda: False)
    monkeypatch.setattr(loading, "_loaded", {})
    assert saved(photo, model=architecture) == data
    assert np.abs(tile_of(data).y).max() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiles_decode_alone(architecture: str) -> None:
    with Image.open(HERE / "images" / "coffee.png") as image:
        photo = image.convert("RGB").resize((400, 300))
    data = saved(photo, model=architecture, tile=128)
    whole = np.asarray(opened(data), int)
    box = (130, 140, 250, 250)
    with Image.open(io.BytesIO(data)) as lazy:
        part = np.asarray(lazy.crop(box), int)
    assert np.abs(part - whole[box[1] : box[3], box[0] : box[2]]).max() <= 1
    assert distortion(Image.fromarray(whole.astype(np.uint8)), photo) < 600


def test_drafts_are_means(photo: Image.Image) -> None:
    data = saved(photo, model="mbt2018-mean")
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (photo.width // 4, photo.height // 4))
        small = np.asarray(image, float)
    assert small.shape == (38, 50, 3)
    difference = np.abs(small - np.asarray(opened(data).reduce(4), float))
    assert np.quantile(difference, 0.95) <= 1  # where no pixel is limited to 0 ... 255


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_modes(mode: str, photo: Image.Image) -> None:
    given = photo.convert(mode)
    if "A" in mode:
        given.putalpha(Image.linear_gradient("L").resize(photo.size))
    image = opened(saved(given, model="mbt2018-mean"))
    assert image.mode == mode
    if "A" in mode:
        assert np.array_equal(image.getchannel("A"), given.getchannel("A"))


def test_frames(photo: Image.Image) -> None:
    out = io.BytesIO()
    photo.save(out, "LIC", save_all=True, append_images=[photo.transpose(0)], model="mbt2018", duration=40)
    image = Image.open(io.BytesIO(out.getvalue()))
    assert image.n_frames == 2
    image.seek(1)
    assert distortion(image.convert("RGB"), photo.transpose(0)) < 450


def test_a_quality_takes_the_nearest_network_and_says_so(photo: Image.Image) -> None:
    found = {q: opened(saved(photo, model="mbt2018-mean", quality=q)) for q in (1, 2, 3.2, 3.6, 4.5, 8)}
    assert {q: i.info["quality"] for q, i in found.items()} == {1: 2, 2: 2, 3.2: 2, 3.6: 5, 4.5: 5, 8: 5}
    assert np.array_equal(found[3.6], found[8])
    assert distortion(found[8], photo) < distortion(found[1], photo)


def test_a_target_chooses_among_the_networks(photo: Image.Image) -> None:
    sizes = {q: len(saved(photo, model="mbt2018-mean", quality=q)) for q in (2, 5)}
    assert sizes[2] < sizes[5]
    for size in (sizes[2], sizes[5] - 1, sizes[5], sizes[5] + 1000):
        best = sizes[5] if size >= sizes[5] else sizes[2]
        assert len(saved(photo, model="mbt2018-mean", target_size=size)) == best
    with pytest.raises(ValueError, match=f"out of reach: this picture takes {sizes[2]} at quality 2"):
        saved(photo, model="mbt2018-mean", target_size=sizes[2] - 1)
    shown = {q: psnr(photo, pixels_of(saved(photo, model="mbt2018-mean", quality=q))) for q in (2, 5)}
    for wanted, quality in ((shown[2] - 0.01, 2), (shown[2] + 0.01, 5), (shown[5] - 0.01, 5)):
        assert len(saved(photo, model="mbt2018-mean", target_psnr=wanted)) == sizes[quality]
    with pytest.raises(ValueError, match="dB at quality 5"):
        saved(photo, model="mbt2018-mean", target_psnr=shown[5] + 0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": "checkerboard"}, "has no context 'checkerboard'; it has 'autoregressive'"),
        ({"context": "none"}, "has no context 'none'"),
        ({"quantizer": "e8"}, "has no quantizer 'e8'; it has 'scalar'"),
        ({"effort": 2}, "has no effort"),
        ({"adaptive": True}, "has no adaptive"),
        ({"roi": Image.new("L", (200, 152))}, "has no roi"),
    ],
)
def test_options_that_it_has_not(options: dict[str, Any], message: str, photo: Image.Image) -> None:
    with pytest.raises(ValueError, match=message):
        saved(photo, model="mbt2018", **options)


def test_options_that_name_its_own(photo: Image.Image) -> None:
    plain = saved(photo, model="mbt2018")
    assert saved(photo, model="mbt2018", context="autoregressive", quantizer="scalar", effort=0) == plain
    assert saved(photo, model="mbt2018", context="auto") == plain


def test_transcode_leaves_the_file_or_refuses(photo: Image.Image) -> None:
    data = saved(photo, model="mbt2018", comment=b"kept")
    assert transcode(data, "auto") == data
    with pytest.raises(ValueError, match="no context 'none'"):
        transcode(data, "none")


@pytest.mark.parametrize("architecture", ["mbt2018", "bmshj2018-factorized", "mbt2018-mean"])
def test_damage_is_found(architecture: str, photo: Image.Image) -> None:
    reader = container.Reader(io.BytesIO(saved(photo, model=architecture)))
    reader.metadata()
    header, (frame,) = reader.header, list(reader.frames())
    for at in range(4, len(frame.tiles[0]), 97):
        tile = bytearray(frame.tiles[0])
        tile[at] ^= 64
        with pytest.raises(OSError, match="damaged"):
            decode(header, container.Frame([bytes(tile)]))
    for wrong in ({"context": "staircase"}, {"quantizer": "e8"}, {"adaptive": True}):
        with pytest.raises(OSError, match="does not belong to its model"):
            decode(replace(header, **wrong), frame)


# -- the integers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "bmshj2018-factorized"])
def test_integers_repeat_the_float_network(architecture: str, photo: Image.Image) -> None:
    network = read_checkpoint(checkpoint(CHECKPOINTS[architecture][0]), architecture)
    model = one(architecture)
    x = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None, :, :128, :192].float() / 255
    with torch.inference_mode():
        y = network.g_a(x)
        coded = model.quantise(y)
        z = torch.from_numpy(coded.z.astype(np.float32)) + network.entropy_bottleneck.medians[:, None, None]
        decoded = torch.from_numpy(coded.y.astype(np.float32)) + coded.mean / 2**MEAN_BITS
        mean, scale = network.conditional(z[None], decoded[None])
    assert float((mean[0] - coded.mean / 2**MEAN_BITS).abs().max()) < 0.03
    thresholds = model.family.thresholds.float() / 2**SCALE_BITS
    index = torch.bucketize(scale[0].contiguous(), thresholds)
    assert int((index - coded.index.int()).abs().max()) <= 1
    assert float((index == coded.index).float().mean()) > 0.97


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_cost_is_small(architecture: str, folder: Path) -> None:
    manifest = json.loads((folder / f"{architecture}.json").read_text())
    assert manifest["architecture"] == architecture
    assert manifest["identity"] == load_model(architecture).identity.hex()
    assert len(manifest["qualities"]) == len(CHECKPOINTS[architecture])
    for quality in manifest["qualities"]:
        assert -0.5 < quality["cost_percent"] < 0.5
        assert quality["float_bits"] > 1000


def test_a_transposed_convolution_is_a_subpixel_convolution() -> None:
    torch.manual_seed(3)
    network = Network("mbt2018-mean", 3, 4).requires_grad_(False)
    x = torch.randn(1, 3, 5, 7).round()
    calibration = Calibration(network)
    with torch.inference_mode():
        calibration.see(x, torch.zeros(1, 4, 20, 28))
    bits = calibration.bits("h_s.0")
    layer = Linear(integers_of(network, calibration), "h_s.0", Form(3, 16, 3, shuffle=True), CPU)
    found = layer.over(x[0].double() * 256) / 2**bits
    assert torch.allclose(found.float(), network.h_s[0](x)[0], atol=1e-3)


def test_layers_that_are_not_exact_are_refused() -> None:
    tensors = {
        "a.weight": torch.full((1, 64), 2**15 - 1, dtype=torch.int16),
        "a.bias": torch.tensor([2**53 - 64 * (2**15 - 1) ** 2]),
        "a.shift": torch.zeros(1, dtype=torch.uint8),
    }
    with pytest.raises(ValueError, match="layer a is not exact"):
        Linear(tensors, "a", Form(64, 1), CPU)
    Linear(tensors | {"a.bias": tensors["a.bias"] - 1}, "a", Form(64, 1), CPU)


def test_sums_fit_products_of_bytes() -> None:
    """Even of weights that are all about as large, and of outputs that are all but dead."""
    network = Network("mbt2018", 8, 200).requires_grad_(False)
    network.entropy_parameters[0].weight[0], network.entropy_parameters[0].bias[0] = 1e-9, 5.0
    with torch.inference_mode():
        calibration = Calibration(network)
        calibration.see(torch.zeros(1, 8, 2, 2), torch.zeros(1, 200, 8, 8))
        found = integers_of(network, calibration)
    for name in ("context", "parameters.0", "parameters.1", "parameters.2", "h_s.0", "h_s.1", "h_s.2"):
        weight, bias, shift = (found[f"{name}.{part}"] for part in ("weight", "bias", "shift"))
        assert int(weight.abs().max()) > 2**12
        assert layers._Bytes.of(weight, bias.numpy()[None], shift.long().numpy(), LIMIT) is not None


def test_a_wave_needs_only_earlier_ones() -> None:
    height, width, known = 6, 9, set()
    for at, _, _ in Wavefront(1, height, width, CPU):
        for n in at.tolist():
            row, column = divmod(n, width)
            for dy, dx in [(-2, d) for d in range(-2, 3)] + [(-1, d) for d in range(-2, 3)] + [(0, -2), (0, -1)]:
                if row + dy >= 0 and 0 <= column + dx < width:
                    assert (row + dy, column + dx) in known
        known |= {divmod(n, width) for n in at.tolist()}
    assert len(known) == height * width


def test_learned_tables_are_the_density() -> None:
    density = read_checkpoint(checkpoint("bmshj2018-factorized-3"), "bmshj2018-factorized").entropy_bottleneck
    frequencies, lengths = learned_tables(density)
    first = frequencies[: lengths[0]] / 2**24
    reach = lengths[0] // 2 - 1
    values = density.medians[:, None] + torch.arange(-reach, reach + 1)
    assert np.allclose(first[:-1], density(values)[0].numpy(), atol=2e-6)


def test_a_model_file_that_is_damaged(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "mbt2018.safetensors")
    about = {"format": 1, "architecture": "mbt2018", "stops": [{"code": 512, "channels": 16, "latents": 24}]}

    def made(name: str, changed: dict[str, torch.Tensor], **said: Any) -> str:
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors | changed, path, metadata={"pillow-lic": json.dumps(about | said)})
        return str(path)

    assert load_model(made("right", {})).identity != load_model("mbt2018").identity
    with pytest.raises(ValueError, match="needs a newer pillow-lic"):
        load_model(made("newer", {}, architecture="mbt2030"))
    with pytest.raises(ValueError, match="impossible qualities"):
        load_model(made("none", {}, stops=[]))
    with pytest.raises(ValueError, match="impossible thresholds"):
        load_model(made("thresholds", {"thresholds": tensors["thresholds"].flip(0)}))
    with pytest.raises(ValueError, match="import its checkpoints again"):
        load_model(made("earlier", {"thresholds": tensors["thresholds"] * 4}))
    with pytest.raises(ValueError, match="impossible qualities"):
        load_model(made("high", {}, stops=[about["stops"][0] | {"code": 1793}]))
    with pytest.raises(ValueError, match="wrong shape"):
        saved(Image.new("RGB", (32, 32)), model=made("shape", {"0.exact.context.weight": torch.zeros(48, 289).short()}))
    with pytest.raises(OSError, match=r"size mismatch for 4\.weight"):
        saved(Image.new("RGB", (32, 32)), model=made("transform", {"0.g_a.4.weight": torch.rand(2, 2)}))
    with pytest.raises(ValueError, match="not consist of integers"):
        saved(Image.new("RGB", (32, 32)), model=made("floats", {"0.exact.context.weight": torch.rand(48, 288)}))
    shutil.rmtree(tmp_path)


# -- the format's description in plain integers ------------------------------------------------------


def layer(tensors: dict[str, np.ndarray], name: str, x: np.ndarray, activation: str = "") -> np.ndarray:
    """(P, in) -> (P, out)."""
    weight, bias, shift = (tensors[f"0.exact.{name}.{part}"].astype(np.int64) for part in ("weight", "bias", "shift"))
    x = np.clip(x, -32767, 32767)
    out = np.clip((x @ weight.T + bias + ((1 << shift) >> 1)) >> shift, -(2**20), 2**20)
    if activation == "leaky":
        out = np.clip(out, -32767, 32767)
        return np.maximum(out, (out * 10486 + 2**19) >> 20)
    return np.maximum(out, 0) if activation == "relu" else out


def convolution(
    tensors: dict[str, np.ndarray], name: str, x: np.ndarray, activation: str = "", doubled: bool = False
) -> np.ndarray:
    """3x3, (C, h, w)."""
    _, h, w = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    windows = [padded[:, i : i + 3, j : j + 3].ravel() for i in range(h) for j in range(w)]
    out = layer(tensors, name, np.stack(windows), activation).T.reshape(-1, h, w)
    if doubled:
        out = out.reshape(-1, 2, 2, h, w).transpose(0, 3, 1, 4, 2).reshape(-1, 2 * h, 2 * w)
    return out


@pytest.mark.parametrize("architecture", ["bmshj2018-hyperprior", "mbt2018", "cheng2020-anchor"])
def test_the_format_in_plain_integers(architecture: str, folder: Path, photo: Image.Image) -> None:
    """docs/format.md in NumPy's integers: the same means and tables from the same symbols."""
    from safetensors.numpy import load_file

    t = load_file(folder / f"{architecture}.safetensors")
    tile = tile_of(saved(photo.crop((60, 20, 150, 90)), model=architecture))
    latents, h, w = tile.y.shape
    x = 256 * tile.z.astype(np.int64) + t["0.bottleneck.medians"][:, None, None]
    if architecture == "cheng2020-anchor":
        for n, doubled in enumerate((False, True, False, True)):
            x = convolution(t, f"h_s.{n}", x, "leaky", doubled)
        x = convolution(t, "h_s.4", x)
    else:
        kind = "relu" if architecture == "bmshj2018-hyperprior" else "leaky"
        x = convolution(t, "h_s.1", convolution(t, "h_s.0", x, kind, True), kind, True)
        x = convolution(t, "h_s.2", x, "relu" if kind == "relu" else "")
    x = x[:, :h, :w]
    if architecture in WITH_CONTEXT:
        known = np.zeros((h + 4, w + 4, latents), np.int64)
        parameters = np.zeros((2 * latents, h, w), np.int64)
        for row in range(h):  # the order of waves changes nothing: whatever a window shows is known
            for column in range(w):
                window = known[row : row + 5, column : column + 5].reshape(25, latents)[:12].reshape(1, -1)
                own = np.concatenate([x[None, :, row, column], layer(t, "context", window)], axis=1)
                for n in range(3):
                    own = layer(t, f"parameters.{n}", own, "leaky" if n < 2 else "")
                parameters[:, row, column] = own[0]
                known[row + 2, column + 2] = 64 * tile.y[:, row, column].astype(np.int64) + own[0, latents:]
        x = parameters
    mean = x[latents:] if len(x) > latents else np.zeros_like(x)
    assert np.array_equal(tile.priors.mean.numpy(), mean)
    assert np.array_equal(tile.priors.index.numpy(), np.searchsorted(t["thresholds"], x[:latents]))
    assert len(np.unique(tile.priors.index)) > 3

"""Our implementation of the published codecs beside CompressAI's own, on the same weights.

Runs in an environment of its own: ``make test-compressai``.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import operators  # noqa: F401  (before CompressAI)
import pytest
import torch
from PIL import Image
from torch import Tensor

from pillow_lic.models.compressai.checkpoint import read_checkpoint
from pillow_lic.models.compressai.networks import ARCHITECTURES, Network
from pillow_lic.training.compressai import import_checkpoints

zoo = pytest.importorskip("compressai.zoo.image", reason="needs CompressAI: make test-compressai")

HERE = Path(__file__).parent
CHECKPOINTS = {
    "bmshj2018-factorized": "bmshj2018-factorized-3",
    "bmshj2018-hyperprior": "bmshj2018-hyperprior-3",
    "mbt2018-mean": "mbt2018-mean-5",
    "mbt2018": "mbt2018-3",
    "cheng2020-anchor": "cheng2020-anchor-3",
}
SMALLEST = 1e-9
"""What CompressAI limits likelihoods to."""


def trained(architecture: str) -> torch.nn.Module:
    """CompressAI's network of a checkpoint in this folder."""
    state = torch.load(HERE / f"{CHECKPOINTS[architecture]}.pth.tar", weights_only=True)["state_dict"]
    network = zoo.model_architectures[architecture].from_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    )
    return network.eval()


def untrained(architecture: str) -> torch.nn.Module:
    """CompressAI's network with random weights, and numbers of channels that nothing divides."""
    torch.manual_seed(1)
    sizes = (22,) if ARCHITECTURES[architecture].residual else (18, 26)
    network = zoo.model_architectures[architecture](*sizes).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network


def picture() -> Tensor:
    with Image.open(HERE.parent / "images" / "coffee.png") as image:
        pixels = np.array(image.convert("RGB"))[:128, :192]
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def forward(network: Network, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The picture and the likelihoods of y, and z where there is one, as CompressAI's forward passes have them."""
    y, density = network.g_a(x), network.entropy_bottleneck
    median = density.medians[:, None, None]

    def learned(values: Tensor) -> Tensor:
        return density(values[0].flatten(1)).reshape(values.shape).clamp(min=SMALLEST)

    if not network.kind.hyperprior:
        decoded = torch.round(y - median) + median
        return network.g_s(decoded), [learned(decoded)]
    z = torch.round(network.hyperlatents(y) - median) + median
    mean, scale = network.conditional(z, torch.round(y))
    residual = torch.round(y - mean).abs()
    near, far = (torch.erfc((residual + d) / (scale.clamp(min=0.11) * 2**0.5)) / 2 for d in (-0.5, 0.5))
    # CompressAI's forward pass of the autoregressive models rounds y around nothing; its coder does as ours.
    decoded = torch.round(y) if network.kind.context else torch.round(y - mean) + mean
    return network.g_s(decoded), [(near - far).clamp(min=SMALLEST), learned(z)]


@pytest.mark.parametrize("made", [trained, untrained])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float_passes_are_equal(architecture: str, made: object, tmp_path: Path) -> None:
    theirs = made(architecture)
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    ours = read_checkpoint(tmp_path / "x.pth", architecture)
    with torch.inference_mode():
        expected = theirs(picture())
        found, likelihoods = forward(ours, picture())
    assert float((found - expected["x_hat"]).abs().max()) < 1e-5
    for ours_of, theirs_of in zip(likelihoods, expected["likelihoods"].values(), strict=True):
        assert float((ours_of - theirs_of).abs().max()) < 1e-5


def test_a_checkpoint_with_tables(tmp_path: Path) -> None:
    """The published checkpoints hold the tables of CompressAI's coder, too."""
    theirs = trained("mbt2018-mean")
    theirs.update(force=True)
    torch.save(theirs.state_dict(), tmp_path / "mbt2018-mean-5-0123abcd.pth.tar")
    made = import_checkpoints(
        [tmp_path / "mbt2018-mean-5-0123abcd.pth.tar"], "mbt2018-mean", tmp_path / "x.safetensors"
    )
    assert [r.quality for r in made] == [5]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_files_are_as_small_and_as_good(architecture: str, tmp_path: Path) -> None:
    """Against CompressAI's own coder on the same picture: at most as many bytes, and the same PSNR."""
    theirs = trained(architecture)
    theirs.update(force=True)
    x = picture()[:, :, :64, :128] if ARCHITECTURES[architecture].context else picture()  # theirs takes its time
    with torch.inference_mode():
        coded = theirs.compress(x)
        shown = theirs.decompress(coded["strings"], coded["shape"])["x_hat"]
    model = tmp_path / f"{architecture}.safetensors"
    import_checkpoints([HERE / f"{CHECKPOINTS[architecture]}.pth.tar"], architecture, model)
    given = (x[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    out = io.BytesIO()
    Image.fromarray(given).save(out, "LIC", model=model)
    with Image.open(io.BytesIO(out.getvalue())) as image:
        errors = np.square(np.asarray(image, float) - given).mean()
    expected = np.square(shown[0].permute(1, 2, 0).clamp(0, 1).numpy() * 255 - given).mean()
    assert abs(10 * np.log10(errors / expected)) < 0.1
    # 100 bytes: container, checksums, and the model's name.
    assert len(out.getvalue()) - 100 <= sum(len(s[0]) for s in coded["strings"])

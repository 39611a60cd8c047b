from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGES

from pillow_lic import distortions
from pillow_lic.models.context.network import ContextModel
from pillow_lic.models.context.schedule import HYPER, ContextShape
from pillow_lic.models.hyperprior import HyperpriorModel
from pillow_lic.models.transforms import Architecture
from pillow_lic.training import correlation, surrogates
from pillow_lic.training.losses import Objective, forward, rate_distortion

TINY = Architecture(latents=24, analysis=(0, 0), synthesis=(0, 0), hyper_channels=16, hyperlatents=8)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", distortions.DISTORTIONS)
def test_distortions_are_zero_for_equals_and_grow(name: str) -> None:
    measure = distortions.DISTORTIONS[name]
    picture = (40 * noise(2, 3, 192, 192)).clamp(-127, 127)
    little, much = picture + 2 * noise(2, 3, 192, 192, seed=1), picture + 30 * noise(2, 3, 192, 192, seed=1)
    assert measure(picture, picture).abs().max() < 1e-3
    assert (measure(little, picture) > 0).all()
    assert (measure(much, picture) > 5 * measure(little, picture)).all()


def test_ssim_map_agrees_with_the_library() -> None:
    from pytorch_msssim import ssim

    one = (40 * noise(1, 3, 64, 64)).clamp(-127, 127)
    other = one + 10 * noise(1, 3, 64, 64, seed=1)
    inner = distortions.ssim_map(one, other)[:, :, 5:-5, 5:-5].mean()
    assert float(inner) == pytest.approx(float(ssim(one + 127.5, other + 127.5, data_range=255.0)), abs=1e-4)


def test_ssim_weights_move_weight_to_where_structure_is_lost() -> None:
    picture = torch.zeros(1, 3, 64, 64)
    picture[:, :, :, ::2] = 60.0  # texture on the left half only
    picture[:, :, :, 32:] = 0.0
    output = (picture + 3 * noise(1, 3, 64, 64)).requires_grad_()
    weighted = distortions.ssim_weighted(output, picture)
    (gradient,) = torch.autograd.grad(weighted.sum(), output)
    error = (output - picture).detach().abs()
    per_error = (gradient.abs() / error.clamp(min=0.1))[0].mean(dim=(0, 1))
    assert per_error[40:].mean() > 2 * per_error[:24].mean()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("point", [[1, 1, 1], [1, 0, 1], [1, 1, 1]]),
        ("causal", [[1, 1, 1], [1, 0, 0], [0, 0, 0]]),
        ("checkerboard", [[0, 1, 0], [1, 0, 1], [0, 1, 0]]),
        ("cross", [[0, 1, 0], [1, 0, 1], [0, 1, 0]]),
    ],
)
def test_correlation_masks(name: str, expected: list[list[int]]) -> None:
    assert correlation.mask_of(name, 3).tolist() == expected
    assert correlation.mask_of(name, 5)[2, 2] == 0


def test_checkerboard_and_cross_differ_beyond_three() -> None:
    assert correlation.mask_of("checkerboard", 5).sum() == 12
    assert correlation.mask_of("cross", 5).sum() == 8


@pytest.mark.parametrize(("name", "window"), [("dot", 3), ("point", 2), ("point", 1)])
def test_impossible_correlation_masks(name: str, window: int) -> None:
    with pytest.raises(ValueError, match="correlation"):
        correlation.mask_of(name, window)


def test_correlation_map_against_numpy() -> None:
    values = noise(2, 5, 9, 8)
    found = correlation.correlation_map(values, 3).numpy()
    x = values.numpy()
    centre = x[:, :, 1:-1, 1:-1]
    for dy in range(3):
        for dx in range(3):
            expected = (centre * x[:, :, dy : dy + 7, dx : dx + 6]).mean(axis=(1, 2, 3))
            assert np.allclose(found[:, dy, dx], expected, atol=1e-6)


def test_correlation_loss_tells_smooth_from_white() -> None:
    white = noise(2, 30, 20, 20)
    smooth = torch.nn.functional.avg_pool2d(white, 3, 1, 1) * 3
    for mask in correlation.MASKS:
        assert (
            correlation.correlation_loss(smooth, 3, mask).min()
            > 30 * correlation.correlation_loss(white, 3, mask).max()
        )


def test_correlation_loss_decorrelates() -> None:
    torch.manual_seed(0)
    white = noise(4, 8, 16, 16)
    smooth = torch.nn.functional.avg_pool2d(white, 3, 1, 1) * 3
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[0, 0, 1, 1] = 1
    kernel.requires_grad_()
    optimiser = torch.optim.Adam([kernel], lr=0.02)
    losses = []
    for _ in range(80):
        filtered = torch.nn.functional.conv2d(smooth.reshape(-1, 1, 16, 16), kernel, padding=1).reshape(4, 8, 16, 16)
        filtered = filtered / filtered.std()
        loss = correlation.correlation_loss(filtered, 3, "point").mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_opposite_correlations_cancel_unless_taken_by_channel() -> None:
    x = noise(2, 1, 32, 32)
    smooth = (x + torch.roll(x, 1, dims=3)) / 2**0.5
    edged = (x - torch.roll(x, 1, dims=3)) / 2**0.5
    both = torch.cat([smooth, edged], dim=1)
    alone = correlation.correlation_loss(smooth, 3, "point")
    assert (correlation.correlation_loss(both, 3, "point") < 0.05 * alone).all()
    assert (correlation.correlation_loss(both, 3, "point", by_channel=True) > 0.8 * alone).all()


def test_correlation_by_channel() -> None:
    values = torch.stack([noise(3, 20, 20), torch.nn.functional.avg_pool2d(noise(3, 20, 20, seed=1), 3, 1, 1)], dim=1)
    found = correlation.correlation_by_channel(values, 3)
    assert torch.allclose(found[:, 1, 1], torch.ones(2))
    assert found[0, 1, 0].abs() < 0.15
    assert found[1, 1, 0] > 0.5


@pytest.mark.parametrize("kind", surrogates.QUANTISATIONS)
def test_surrogates(kind: str) -> None:
    x = torch.linspace(-3, 3, 241).requires_grad_()
    torch.manual_seed(0)
    rate, distortion = surrogates.surrogate(x, kind, 0.0)
    for values in (rate, distortion):
        assert (values - x).abs().max() <= 0.51
        (gradient,) = torch.autograd.grad(values.sum(), x, retain_graph=True)
        assert (gradient >= 0).all()
        assert gradient.sum() > 0
    if kind in ("straight-through", "mixed"):
        assert torch.equal(distortion, x.round())
    if kind == "noise":
        assert torch.equal(rate, distortion)
        assert not torch.equal(rate, rate.round())


def test_lattice_noise_is_that_of_the_quantiser() -> None:
    torch.manual_seed(2)
    surrogates._lattice_errors.cache_clear()
    x = torch.linspace(-3, 3, 100_003, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):  # as in training
        error = (surrogates.lattice_noise(x) - x).detach()
    assert float(error.mean()) == pytest.approx(0, abs=0.005)
    assert float(error.square().mean()) == pytest.approx(0.0642, rel=0.02)  # 23 % below rounding's 1/12
    (gradient,) = torch.autograd.grad(surrogates.lattice_noise(x).sum(), x)
    assert (gradient == 1).all()


def test_soft_assignment_hardens() -> None:
    x = torch.linspace(-3, 3, 240)
    error = [float((surrogates.surrogate(x, "soft-to-hard", p)[0] - x.round()).abs().mean()) for p in (0.0, 0.5, 1.0)]
    assert error[0] > 2 * error[1] > 4 * error[2]


def test_the_objective_decides_what_is_computed() -> None:
    torch.manual_seed(1)
    model = HyperpriorModel(TINY).eval()
    for name in ("checkerboard", "staircase"):
        shape = ContextShape((5,) if name == "staircase" else (), width=16)
        model.contexts[name] = ContextModel(name, shape, TINY)
    pixels, quality = 30 * noise(2, 3, 192, 192), torch.tensor([2.0, 6.0])
    with torch.no_grad():
        plain = forward(model, pixels, quality)
        blind = forward(model, pixels, quality, Objective(distortion=None, contexts=("staircase",)))
        other = forward(model, pixels, quality, Objective(distortion="ms-ssim", window=3, contexts=()))
    assert set(plain.context_bpp) == {"checkerboard", "staircase"}
    assert set(blind.context_bpp) == {"staircase"}
    assert not blind.mse.any()
    assert torch.equal(plain.y_bpp, blind.y_bpp)
    assert torch.equal(plain.mse, other.mse)
    assert torch.equal(plain.mse, plain.distortion)
    assert not torch.equal(other.mse, other.distortion)
    assert (other.correlation > 0).all()
    assert not plain.correlation.any()
    shares = {"none": 1.0, "staircase": 3.0}
    expected = plain.z_bpp + (plain.y_bpp + 3 * plain.context_bpp["staircase"]) / 4
    assert torch.allclose(plain.bpp(shares), expected)
    without = rate_distortion(other, quality, 0.4, {"none": 1.0})
    with_it = rate_distortion(other, quality, 0.4, {"none": 1.0}, correlation=2.0)
    assert float(with_it - without) == pytest.approx(2 * float(other.correlation.mean()), rel=1e-3)


def test_z_has_a_rate_of_its_own_with_contexts() -> None:
    torch.manual_seed(1)
    model = HyperpriorModel(TINY).eval()
    model.contexts["staircase"] = ContextModel("staircase", ContextShape((5,), width=16), TINY)
    pixels, quality = 30 * noise(2, 3, 192, 192), torch.tensor([2.0, 6.0])
    with torch.no_grad():
        before = forward(model, pixels, quality)
        assert torch.equal(before.z_context_bpp, before.z_bpp)
        model.contexts[HYPER] = ContextModel(HYPER, ContextShape((), 2, width=8), TINY)
        for network in model.contexts[HYPER].networks.values():
            torch.nn.init.normal_(network.leave.bias, std=0.3)
        after = forward(model, pixels, quality)
        blind = forward(model, pixels, quality, Objective(contexts=()))
    assert set(after.context_bpp) == {"staircase"}
    assert torch.equal(after.z_bpp, before.z_bpp)
    assert not torch.allclose(after.z_context_bpp, after.z_bpp)
    assert torch.equal(blind.z_context_bpp, blind.z_bpp)  # nobody asks for it
    shares = {"none": 1.0, "staircase": 3.0}
    whole = after.y_bpp + after.z_bpp + 3 * (after.context_bpp["staircase"] + after.z_context_bpp)
    assert torch.allclose(after.bpp(shares), whole / 4)


RECIPE = """
name = "tiny"
[schedule]
steps = 4
warmup_steps = 1
[model]
latents = 24
analysis = [1, 0]
synthesis = [1, 0]
hyper_channels = 16
hyperlatents = 8
[batches]
size = 64
batch = 2
"""


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    """DistributedDataParallel over gloo: each sees crops of its own, both hold the same weights."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from pillow_lic.training import distributed\n"
        "from pillow_lic.training.loop import Trainer\n"
        "from pillow_lic.training.recipe import load_recipe\n"
        "torch.set_num_threads(1)\n"
        "folder, images = Path(sys.argv[1]), sys.argv[2]\n"
        "with distributed.together('cpu'):\n"
        "    trainer = Trainer(load_recipe(folder / 'recipe.toml'), images)\n"
        "    assert trainer.train(folder / 'checkpoint.pt')\n"
        "    torch.save(trainer.model.state_dict(), folder / f'{distributed.rank()}.pt')\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(IMAGES.parent.parent)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*command, str(script), str(tmp_path), str(IMAGES)], check=True, env=environment, timeout=240)
    one, other = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (0, 1))
    assert all(torch.equal(one[k], other[k]) for k in one)
    subprocess.run([sys.executable, str(script), str(tmp_path), str(IMAGES)], check=True, env=environment, timeout=240)
    alone = torch.load(tmp_path / "0.pt", weights_only=True)
    assert any(not torch.equal(one[k], alone[k]) for k in one)

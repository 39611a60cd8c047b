"""Weights are rounded for what their layer sees."""

from __future__ import annotations

import torch
from PIL import Image
from test_context import tiny_model

from pillow_lic.training.export import context_tensors, exact_tensors
from pillow_lic.training.rounding import input_moments, rounded, within
from pillow_lic.training.validate import tensor_of


def inputs_alike(count: int = 4000) -> torch.Tensor:
    """(n, P): inputs that go up and down together, as activations of neighbouring channels do."""
    generator = torch.Generator().manual_seed(2)
    common = torch.randn(3, count, generator=generator, dtype=torch.float64)
    mix = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    return mix @ common + 0.1 * torch.randn(24, count, generator=generator, dtype=torch.float64) + 0.5


def test_results_err_less_than_with_the_nearest_weights() -> None:
    x = inputs_alike()
    weight = 20 * torch.randn(16, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    near, better = rounded(weight, None, 127), rounded(weight, x @ x.mT / x.shape[1], 127)
    assert torch.equal(near, weight.round())
    assert torch.equal(better, better.round())
    errors = [((found - weight) @ x).square().mean() for found in (near, better)]
    assert errors[1] < 0.2 * errors[0]


def test_without_correlation_the_nearest_are_best() -> None:
    weight = 30 * torch.randn(8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moment = torch.diag(torch.arange(1.0, 13, dtype=torch.float64))
    assert torch.equal(rounded(weight, moment, 127), weight.round())


def test_whole_numbers_stay_and_limits_hold() -> None:
    x = inputs_alike()
    moment = x @ x.mT / x.shape[1]
    whole = torch.randint(-127, 128, (8, 24), generator=torch.Generator().manual_seed(3)).double()
    assert torch.equal(rounded(whole, moment, 127), whole)  # exported again, a model's weights are the same
    assert rounded(whole * 1.6, moment, 127).abs().max() == 127


def test_an_input_that_is_always_zero_is_no_error() -> None:
    x = inputs_alike()
    x[5] = 0
    weight = 20 * torch.randn(4, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for seen in (x, torch.zeros_like(x)):
        found = rounded(weight, seen @ seen.mT / x.shape[1], 127)
        assert torch.equal(found[:, 5], weight[:, 5].round())


def test_moments_are_those_of_what_layers_see(photo: Image.Image) -> None:
    model = tiny_model()
    samples = [(tensor_of(photo.crop((0, 0, 128, 64))), torch.tensor([q])) for q in (2.0, 6.5)]
    seen: list[torch.Tensor] = []
    layer = model.hyper_synthesis.middle.mix
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    moments = input_moments(model, samples)
    handle.remove()
    x = torch.cat([torch.nn.functional.pad(s, (1, 1, 1, 1)).double() for s in seen])
    _, c, h, w = x.shape
    patches = torch.stack([x[:, :, i : h - 2 + i, j : w - 2 + j] for i in range(3) for j in range(3)], dim=2)
    columns = patches.permute(1, 2, 0, 3, 4).reshape(9 * c, -1)
    expected = columns @ columns.mT / columns.shape[1]
    assert torch.allclose(moments["hyper_synthesis.middle.mix"], expected)
    unit = "contexts.staircase.networks.1."
    width = model.contexts["staircase"].networks["1"].enter.weight.shape[1]
    assert moments[f"{unit}enter"].shape == (width, width)
    assert not [name for name in moments if name.startswith("hyper_analysis")]
    assert not layer._forward_pre_hooks


def test_models_are_exported_with_them(photo: Image.Image) -> None:
    model = tiny_model()
    moments = input_moments(model, [(tensor_of(photo.crop((0, 0, 192, 192))), torch.tensor([4.0]))])
    plain, better = exact_tensors(model), exact_tensors(model, moments)
    name = "middle.mix"
    exact = model.hyper_synthesis.get_submodule(name).weight.detach().double().flatten(1)
    errors = []
    for tensors in (plain, better):
        assert torch.equal(tensors[f"{name}.shift"], plain[f"{name}.shift"])
        scale = 2.0 ** tensors[f"{name}.shift"].double()[:, None]
        error = tensors[f"{name}.weight"].double().flatten(1) / scale - exact
        errors.append((error @ moments[f"hyper_synthesis.{name}"] * error).sum())
    assert errors[1] < 0.5 * errors[0]
    context = model.contexts["staircase"]
    one, other = context_tensors(context), context_tensors(context, within(moments, "contexts.staircase."))
    assert one.keys() == other.keys()
    assert not torch.equal(one["units.1.enter.weight"], other["units.1.enter.weight"])

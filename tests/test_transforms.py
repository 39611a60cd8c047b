from __future__ import annotations

import pytest
import torch

from pillow_lic.models.hyperprior import HyperSynthesis
from pillow_lic.models.transforms import Analysis, Architecture, ResidualBlock, Synthesis, start_linear

SMALL = Architecture(latents=40, analysis=(2, 1), synthesis=(2, 2))


def trained(network: torch.nn.Module) -> torch.nn.Module:
    """A network whose blocks do something."""
    torch.manual_seed(3)
    for block in network.modules():
        if isinstance(block, ResidualBlock):
            torch.nn.init.normal_(block.expand.weight, std=0.1)
            torch.nn.init.normal_(block.expand.bias, std=0.5)
            torch.nn.init.uniform_(block.gain, 0.5, 1.5)
    return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("kind", [Analysis, Synthesis])
@pytest.mark.parametrize(("blocks", "near"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2)])
def test_without_gradients_the_result_is_the_same(
    kind: type[Analysis | Synthesis], blocks: torch.dtype, near: float
) -> None:
    network = trained(kind(SMALL))
    for name in kind.REDUCED:
        getattr(network, name).to(blocks)
    # More positions than are summed up at a time, and no multiple of them.
    shape = (1, 3, 400, 208) if kind is Analysis else (1, 40, 25, 13)
    x = 20 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    expected = network(x, torch.tensor([3.5])).detach()
    with torch.inference_mode():
        found = network(x, torch.tensor([3.5]))
    assert torch.equal(x, before)
    assert expected.abs().max() > 1
    assert (found - expected).abs().max() < near


def test_autocast_without_gradients() -> None:
    network = trained(Synthesis(SMALL))
    x = torch.randn((1, 40, 4, 5), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(x, torch.tensor([4.0]))
        with torch.autocast("cpu", torch.bfloat16):
            found = network(x, torch.tensor([4.0]))
    assert (found - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.parametrize("kind", [Analysis, Synthesis])
def test_training_in_bfloat16_keeps_the_trunk_in_float32(kind: type[Analysis | Synthesis]) -> None:
    network = kind(SMALL)  # as it begins: blocks add nothing, and the trunk is all there is
    start_linear(*(network if kind is k else k(SMALL) for k in (Analysis, Synthesis)), SMALL)
    shape = (2, 3, 32, 48) if kind is Analysis else (2, 40, 2, 3)
    x = 100 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    quality = torch.tensor([2.0, 7.0])
    expected = network(x, quality)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x, quality)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_means_of_latents_in_training_are_not_rounded_to_bfloat16() -> None:
    torch.manual_seed(1)
    network = HyperSynthesis(SMALL)
    torch.nn.init.normal_(network.leave.bias, std=100)
    z = torch.zeros(1, SMALL.hyperlatents, 1, 1)
    expected = network(z, torch.tensor([3.5]))[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = network(z, torch.tensor([3.5]))[0]
    assert expected.abs().max() > 64
    assert (found - expected).abs().max() < 0.01


def test_samples_of_several_qualities_go_through_together() -> None:
    network = trained(Synthesis(SMALL))
    x = torch.randn((2, 40, 4, 5), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        both = network(x, torch.tensor([2.0, 7.0]))
        alone = [network(x[n : n + 1], quality) for n, quality in enumerate(torch.tensor([[2.0], [7.0]]))]
    assert torch.allclose(both, torch.cat(alone), atol=1e-3)
    assert not torch.allclose(network(x, torch.tensor([7.0, 2.0])), both, atol=1e-3)

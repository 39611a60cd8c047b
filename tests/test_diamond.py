from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import coded, pixels_of, psnr, threads
from PIL import Image

import pillow_lic
from pillow_lic.entropy.coder import SymbolDecoder, SymbolEncoder
from pillow_lic.entropy.tables import TOTAL, Tables
from pillow_lic.models.context.schedule import CONTEXTS
from pillow_lic.models.transforms import rate_weight
from pillow_lic.quantizers import diamond
from pillow_lic.search.costs import Costs, cost_table
from pillow_lic.search.relax import DiamondChoice
from pillow_lic.training.probabilities import make_tables


def residual_and_wide() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    residual = rng.normal(scale=3, size=(30, 5, 7)).astype(np.float32)
    wide = rng.random(residual.shape) < 0.4
    wide[:, 2, 3] = False
    return residual, wide


def test_each_position_takes_the_nearer_codebook() -> None:
    residual, wide = residual_and_wide()
    floors, coset = diamond.quantise(residual, wide)
    lattice = diamond.Diamond(wide, coset)
    assert coset.size == 34
    assert 5 < coset.sum() < 29
    found = floors + lattice.half[wide] / 2
    whole, half = np.rint(residual), np.rint(residual - 0.5) + 0.5
    distances = [(np.square(residual - points) * wide).sum(axis=0) for points in (whole, half)]
    moved = distances[1] < distances[0]
    assert np.allclose(found, np.where(moved, half, whole)[wide])
    assert not lattice.half[~wide].any()


@pytest.mark.parametrize("share", [0.0, 0.07, 0.5, 1.0])
def test_cosets_cost_what_their_share_says(share: float) -> None:
    bits = (np.random.default_rng(4).random(20000) < share).astype(np.uint8)
    encoder = SymbolEncoder()
    cosets = diamond.Diamond(np.ones((1, 1, bits.size), np.bool_), bits)
    cosets.write(encoder, bits)
    data = encoder.finish()
    entropy = sum(-p * np.log2(p) for p in (bits.mean(), 1 - bits.mean()) if p)
    assert 8 * len(data) < (entropy + 0.05) * bits.size + 64
    assert np.array_equal(cosets.read(SymbolDecoder(data), bits.size), bits)


def test_bits_of_any_probability_are_exact() -> None:
    """As ``tests/reference_decoder.py`` reads them."""
    from reference_decoder import RangeDecoder

    bits = np.array([0, 1, 1, 0, 0, 0, 1, 0] * 9, np.uint8)
    for ones in (1 << 19, 3 << 19, 31 << 19):
        encoder = SymbolEncoder()
        encoder.encode_below(np.array([11]), 16)
        encoder.encode_bits(bits, ones)
        decoder = RangeDecoder(encoder.finish())
        assert decoder.symbol([TOTAL // 16] * 16) == 11
        assert [decoder.symbol([TOTAL - ones, ones]) for _ in bits] == bits.tolist()


@pytest.mark.parametrize("quality", [1, 3.3, 8])
def test_every_context_decodes_to_the_same_pixels(tiny: str, part: Image.Image, quality: float) -> None:
    files = {
        name: coded(part, model=tiny, quantizer="diamond", context=name, quality=quality)
        for name in ("none", *CONTEXTS)
    }
    expected = pixels_of(files["none"])
    for name, data in files.items():
        assert np.array_equal(pixels_of(data), expected), name
        assert pillow_lic.transcode(data, "none") == files["none"]
        assert pillow_lic.transcode(files["none"], name) == data


def test_tiles_masks_threads_and_sizes(tiny: str, part: Image.Image) -> None:
    mask = Image.linear_gradient("L").resize(part.size)
    options = {"model": tiny, "quantizer": "diamond", "context": "staircase", "tile": 64, "roi": mask}
    data = coded(part, **options)
    expected, again = pixels_of(data), pillow_lic.transcode(data, "none")
    with threads(3):
        assert pillow_lic.transcode(data, "none") == again
        assert np.abs(pixels_of(data).astype(int) - expected).max() <= 1
    for size in ((1, 1), (16, 33), (70, 16)):
        assert pixels_of(coded(part.resize(size), model=tiny, quantizer="diamond")).shape == (size[1], size[0], 3)


@pytest.mark.usefixtures("in_float32")
def test_the_shipped_model_gains_by_it(photo: Image.Image) -> None:
    def cost(quantizer: str) -> float:
        data = coded(photo, quantizer=quantizer, quality=5)
        return 8 * len(data) * 2 ** ((psnr(photo, pixels_of(scalar)) - psnr(photo, pixels_of(data))) / 3.9)

    scalar = coded(photo, quantizer="scalar", quality=5)
    assert cost("e8") < cost("diamond") < cost("scalar")


@pytest.mark.usefixtures("in_float32")
def test_effort_searches_it(part: Image.Image) -> None:
    weight = float(rate_weight(6.0))
    losses = [
        weight * np.square(pixels_of(data).astype(float) - np.asarray(part)).mean(axis=2).sum() + 8 * len(data)
        for data in (coded(part, quantizer="diamond", effort=effort, quality=6) for effort in (0, 2))
    ]
    assert losses[1] < 0.99 * losses[0]


def test_choice_hardens_to_the_nearest_point() -> None:
    residual, wide = residual_and_wide()
    tables = Tables.mirrored(*make_tables(), skip=0)
    zero = torch.zeros(2, residual.size)
    costs = Costs(cost_table(tables, torch.device("cpu")), (zero + 50).long(), zero, zero + 1)
    position = torch.arange(35).repeat(30)
    choice = DiamondChoice(costs, position, torch.from_numpy(wide).flatten())
    points, bits = choice(torch.from_numpy(residual).flatten(), 0.005, 0.0, torch.Generator())
    floors, coset = diamond.quantise(residual, wide)
    expected = np.rint(residual)
    expected[wide] = floors
    total = tables.bits_of(expected, 50).sum()
    expected += diamond.Diamond(wide, coset).half / 2
    # All but what lies in the middle between two points.
    assert (np.abs(points.numpy() - expected.ravel()) > 0.01).mean() < 0.01
    assert float(bits) == pytest.approx(total, rel=0.001)


def test_damaged_cosets_are_found(tiny: str, part: Image.Image) -> None:
    data = coded(part, model=tiny, quantizer="diamond", quality=6)
    body = data.rindex(b"FRAM")
    for at in range(body + 12, len(data) - 4, 197):
        broken = bytes(data[:at]) + bytes([data[at] ^ 16]) + bytes(data[at + 1 :])
        with pytest.raises(OSError, match="damaged"):
            pixels_of(broken)


def test_the_golden_file_names_its_quantiser(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Path(__file__).parent / "golden"
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(golden))
    with Image.open(golden / "diamond-none.lic") as image:
        assert image.info["quantizer"] == "diamond"


def test_companding_is_undone_and_finer_near_the_mean() -> None:
    example = runpy.run_path(str(Path(__file__).resolve().parent.parent / "examples" / "companding.py"))
    x = torch.linspace(-1.5, 1.5, 301)
    for amount in (1.0, 1.2, 3.0, 20.0):
        a = torch.full_like(x, amount)
        compressed = example["compress"](x, a)
        assert torch.allclose(example["expand"](compressed, a), x, atol=1e-5)
        assert (compressed.diff() > 0).all()
        slope = (compressed[151] - compressed[149]) / (x[151] - x[149])
        assert float(slope) == pytest.approx(amount / (1 + np.log(amount)), rel=1e-4)


def test_training_on_the_diamond_sees_what_files_have() -> None:
    example = runpy.run_path(str(Path(__file__).resolve().parent.parent / "examples" / "companding.py"))
    residual, wide = residual_and_wide()
    points = example["diamond"](torch.from_numpy(residual)[None], torch.from_numpy(wide)[None])[0].numpy()
    floors, coset = diamond.quantise(residual, wide)
    expected = np.rint(residual)
    moved = np.zeros(wide.shape[1:], np.float32)
    moved[diamond.positions(wide)] = coset
    expected[wide] = (floors + np.broadcast_to(moved / 2, wide.shape)[wide]).astype(np.float32)
    assert np.allclose(points, expected, atol=1e-5)

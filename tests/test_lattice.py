from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import coded, pixels_of, psnr, threads
from PIL import Image
from reference_decoder import golay_word
from test_context import tiny_model

import pillow_lic
from pillow_lic.entropy.coder import SymbolDecoder, SymbolEncoder
from pillow_lic.entropy.tables import PRECISION, TOTAL, Tables
from pillow_lic.models import loading
from pillow_lic.models.context.schedule import CONTEXTS
from pillow_lic.models.loading import load_model
from pillow_lic.models.transforms import rate_weight
from pillow_lic.quantizers import golay, lattice
from pillow_lic.quantizers.lattice import BW16, E8, H24, KINDS
from pillow_lic.training.export import write_model
from pillow_lic.training.probabilities import make_tables

# -- the lattice ---------------------------------------------------------------------------


def all_near() -> np.ndarray:
    """Zero and its 240 neighbours in E8: 112 of whole and 128 of half steps."""
    whole = np.stack(np.meshgrid(*[[-1, 0, 1]] * 8, indexing="ij"), axis=-1).reshape(-1, 8)
    whole = whole[(np.square(whole).sum(axis=1) == 2)]
    half = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 8, indexing="ij"), axis=-1).reshape(-1, 8)
    half = half[half.sum(axis=1) % 2 == 0]
    return np.concatenate([np.zeros((1, 8)), whole, half])


def test_nearest_point_by_exhaustion() -> None:
    near = all_near()
    assert len(near) == 241
    rng = np.random.default_rng(1)
    # Within the packing's covering radius of zero no other point can be nearest.
    x = rng.normal(size=(4000, 8))
    x *= (rng.uniform(0, 0.99, (4000, 1))) / np.linalg.norm(x, axis=1, keepdims=True)
    x = x.astype(np.float32)
    floors, coset = lattice.quantise(x, E8)
    points = floors + coset[:, None] / 2
    best = np.square(x[:, None] - near).sum(axis=2).min(axis=1)
    assert np.allclose(np.square(x - points).sum(axis=1), best, atol=1e-5)


def test_points_belong_to_the_lattice_and_are_closer_than_whole_numbers() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(scale=5, size=(20000, 8)).astype(np.float32)
    floors, coset = lattice.quantise(x, E8)
    assert (floors.sum(axis=1) % 2 == 0).all()
    error = np.square(x - floors - coset[:, None] / 2).mean()
    # Conway and Sloane 1982: a normalised second moment of 0.071682, against 1/12.
    assert error == pytest.approx(0.071682, rel=0.01)
    assert coset.mean() == pytest.approx(0.5, abs=0.02)


def test_barnes_wall() -> None:
    assert {tuple(w) for w in BW16.words} == {tuple((a + b) % 2) for a in BW16.words for b in BW16.words}
    assert sorted(BW16.words.sum(axis=1)) == [0, *[8] * 30, 16]
    rng = np.random.default_rng(2)
    x = rng.normal(scale=5, size=(30000, 16)).astype(np.float32)
    floors, coset = lattice.quantise(x, BW16)
    assert (floors.sum(axis=1) % 2 == 0).all()
    points = floors + BW16.words[coset] / 2
    # Conway and Sloane: a normalised second moment of 0.068300, for 16 points to a volume.
    assert np.square(x - points).mean() == pytest.approx(0.0683 * 16 ** (-2 / 16), rel=0.01)
    # 4320 nearest neighbours at a squared distance of 2: no point is nearer to another one.
    again, same = lattice.quantise((points + 0.17 * rng.choice([-1, 1], x.shape)).astype(np.float32), BW16)
    assert np.array_equal(again + BW16.words[same] / 2, points)
    assert np.allclose(lattice.distances(x, BW16).min(axis=1), np.square(x - points).sum(axis=1), atol=1e-3)


def test_the_golay_code() -> None:
    words = golay.WORDS
    weights, counts = np.unique(words.sum(axis=1), return_counts=True)
    assert (weights.tolist(), counts.tolist()) == ([0, 8, 12, 16, 24], [1, 759, 2576, 759, 1])
    assert words.tolist() == [golay_word(n) for n in range(4096)]
    known = {bytes(word) for word in words}
    assert len(known) == 4096
    rng = np.random.default_rng(1)
    assert all(bytes(words[a] ^ words[b]) in known for a, b in rng.integers(0, 4096, (3000, 2)))


def of_all_words(x: np.ndarray) -> np.ndarray:
    """Squared distances of groups (G, 24) to the nearest points of H24, word by word."""
    found = np.full(len(x), np.inf)
    for word in H24.words:
        moved = x - word / 2
        found = np.minimum(found, np.square(moved - lattice.nearest_even(moved)).sum(axis=1))
    return found


def test_half_of_leech() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(scale=5, size=(30000, 24)).astype(np.float32)
    floors, coset = lattice.quantise(x, H24)
    assert (floors.sum(axis=1) % 2 == 0).all()
    points = floors + H24.words[coset] / 2
    error = np.square(x - points)
    # 0.98 dB below rounding's 1/12 for 2048 points to a volume; Leech's lattice has 1.03, that of Barnes and Wall 0.86.
    assert error.mean() == pytest.approx(0.0665 * 2048 ** (-2 / 24), rel=0.005)
    best = of_all_words(x[:1000])
    found = error[:1000].sum(axis=1)
    assert (found >= best - 1e-3).all()
    assert found.mean() < 1.003 * best.mean()
    # Any two points are at a squared distance of 2 at least: none is nearer to another one.
    again, same = lattice.quantise((points + 0.14 * rng.choice([-1, 1], x.shape)).astype(np.float32), H24)
    assert np.array_equal(again + H24.words[same] / 2, points)


@pytest.mark.parametrize("kind", [BW16, H24])
def test_several_near_words(kind: lattice.Kind) -> None:
    x = np.random.default_rng(5).normal(scale=3, size=(1500, kind.side)).astype(np.float32)

    def distance(words: np.ndarray) -> np.ndarray:
        moved = x - words / np.float32(2)
        return np.square(moved - lattice.nearest_even(moved)).sum(axis=1)

    near = lattice.nearest_words(x, kind, 8)
    assert (np.diff(np.sort(near, axis=1), axis=1) > 0).all()
    distances = np.stack([distance(kind.words[n]) for n in near.T])
    plain = distance(kind.words[lattice.quantise(x, kind)[1]])
    assert (distances.min(axis=0) <= plain + 1e-3).all()
    farther = (distances.max(axis=0) < distance(kind.words[np.zeros(1500, int)])).mean()  # than any one word
    assert farther > 0.9 * (1 - 8 / len(kind.words))
    assert np.array_equal(near[700:], lattice.nearest_words(x[700:], kind, 8))


def test_groups_are_eight_channels_of_one_position() -> None:
    rng = np.random.default_rng(3)
    index = rng.integers(0, 30, (50, 3, 4)).astype(np.uint8)
    members = lattice.members_of(index, 12, E8)
    channel, place = np.divmod(members, 12)
    assert (place == place[:, :1]).all()
    assert (np.diff(channel, axis=1) > 0).all()
    assert (index.ravel()[members] >= 12).all()
    assert np.unique(members).size == members.size
    wide = (index >= 12).reshape(50, 12).sum(axis=0)
    assert np.array_equal(np.bincount(place[:, 0], minlength=12), wide // 8)
    assert lattice.members_of(np.zeros((50, 3, 4), np.uint8), 12, E8).shape == (0, 8)


def test_groups_of_h24_are_made_across_positions_but_not_across_tiles() -> None:
    index = np.random.default_rng(3).integers(0, 30, (50, 6, 4)).astype(np.uint8)
    members = lattice.members_of(index, 12, H24, tiles=2)
    place = members % 24
    tile = place // 12
    assert (tile == tile[:, :1]).all()
    for number in (0, 1):
        own = members[tile[:, 0] == number]
        order = [p * 50 + c for c, p in zip(*np.divmod(own.ravel(), 24), strict=True)]
        wide = [p * 50 + c for c in range(50) for p in range(24) if p // 12 == number and index[c, p // 4, p % 4] >= 13]
        assert order == sorted(wide)[: len(order)]
        assert 0 <= len(wide) - len(order) < 24
        alone = lattice.members_of(index[:, 3 * number : 3 * number + 3], 12, H24)
        assert np.array_equal(alone // 12 * 24 + alone % 12 + 12 * number, own)
    assert (np.ptp(place, axis=1) > 0).any()


def test_the_last_member_of_a_group_comes_after_all_others() -> None:
    members = np.array([[0, 4, 8, 12, 16, 20, 24, 28], [1, 5, 9, 13, 17, 21, 25, 29]])
    groups = lattice.Lattice(lattice.E8, members, np.zeros(2, np.uint8), (8, 2, 2))
    assert groups.group_of_last[[28, 29]].tolist() == [0, 1]
    rank = np.zeros((8, 2, 2), np.int32)
    rank[[1, 3], 0, 0] = 1  # the first group's second and fourth member
    later = groups.coded_by(rank)
    assert later.group_of_last[[12, 29]].tolist() == [0, 1]
    assert (later.group_of_last >= 0).sum() == 2
    downwards = 300 * np.arange(8, 0, -1, dtype=np.int32)[:, None, None].repeat(2, 1).repeat(2, 2)
    assert later.coded_by(downwards).group_of_last[[4, 1]].tolist() == [0, 1]  # the first order counts first


# -- tables --------------------------------------------------------------------------------


def test_tables_of_one_parity_are_exact_and_cost_a_bit_less() -> None:
    tables = Tables.mirrored(*make_tables(), skip=0)
    both = tables.with_parities()
    count = len(tables)
    assert len(both) == 3 * count
    for table in (5, 30, 63):
        values = np.arange(-9, 10)
        known = np.where(values % 2 == 1, 2 * count, count) + table
        saved = tables.bits_of(values, table) - [
            both.bits_of(v[None], t)[0] for v, t in zip(values, known, strict=True)
        ]
        total = sum(2.0 ** -tables.bits_of(values[values % 2 == 0], table))
        assert np.allclose(saved[values % 2 == 0], -np.log2(total), atol=0.01) or table == 63
        for parity in (1, 2):
            frequencies = both.frequencies[parity * count + table]
            assert int(frequencies.sum()) == TOTAL
            wrong = np.arange(-tables.reach[table], tables.reach[table] + 1) % 2 == 2 - parity
            assert (frequencies[:-1][wrong] == 1).all()
    assert PRECISION == 24


def test_bits_come_back() -> None:
    bits = np.random.default_rng(4).integers(0, 2, 1001).astype(np.uint8)
    encoder = SymbolEncoder()
    encoder.encode_bits(bits, 2**23)
    data = encoder.finish()
    assert len(data) <= 1001 / 8 + 4
    assert np.array_equal(SymbolDecoder(data).decode_bits(1001, 2**23), bits)


# -- files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quality", [1, 3.3, 8])
def test_every_context_decodes_to_the_same_pixels(tiny: str, part: Image.Image, quality: float, kind: str) -> None:
    files = {
        name: coded(part, model=tiny, quantizer=kind, context=name, quality=quality) for name in ("none", *CONTEXTS)
    }
    expected = pixels_of(files["none"])
    for name, data in files.items():
        assert np.array_equal(pixels_of(data), expected), name
        assert pillow_lic.transcode(data, "none") == files["none"]
        assert pillow_lic.transcode(files["none"], name) == data
        assert Image.open(BytesIO(data)).info["quantizer"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_masks_and_threads(tiny: str, part: Image.Image, kind: str) -> None:
    mask = Image.linear_gradient("L").resize(part.size)
    options = {"model": tiny, "quantizer": kind, "context": "staircase", "tile": 64, "roi": mask}
    data = coded(part, **options)
    expected, again = pixels_of(data), pillow_lic.transcode(data, "none")
    with threads(3):
        assert pillow_lic.transcode(data, "none") == again
        assert np.abs(pixels_of(data).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (16, 33), (70, 16)])
def test_any_size(tiny: str, part: Image.Image, size: tuple[int, int], kind: str) -> None:
    small = part.resize(size)
    assert Image.open(BytesIO(coded(small, model=tiny, quantizer=kind, quality=8))).convert("RGB").size == size


@pytest.mark.parametrize("kind", KINDS)
def test_lattices_are_closer_to_the_picture(tiny: str, part: Image.Image, kind: str) -> None:
    plain, dense = (coded(part, model=tiny, quantizer=name, quality=8) for name in ("scalar", kind))
    assert psnr(part, pixels_of(dense)) > psnr(part, pixels_of(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_effort_searches_the_lattice(tiny: str, part: Image.Image, kind: str) -> None:
    for context in ("none", "staircase"):
        plain, searched = (
            coded(part, model=tiny, quantizer=kind, context=context, effort=effort, quality=6) for effort in (0, 3)
        )
        assert Image.open(BytesIO(searched)).info["quantizer"] == kind
        assert np.array_equal(pixels_of(pillow_lic.transcode(searched, "channel")), pixels_of(searched))
        weight = float(rate_weight(6.0))
        losses = [
            weight * np.square(pixels_of(data).astype(float) - np.asarray(part)).mean(axis=2).sum() + 8 * len(data)
            for data in (plain, searched)
        ]
        assert losses[1] < losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_cosets_are_found(tiny: str, part: Image.Image, kind: str) -> None:
    data = bytearray(coded(part, model=tiny, quantizer=kind, quality=6))
    body = data.rindex(b"FRAM")
    for at in range(body + 12, len(data) - 4, 97):
        broken = bytes(data[:at]) + bytes([data[at] ^ 16]) + bytes(data[at + 1 :])
        with pytest.raises(OSError, match="damaged"):
            pixels_of(broken)


def test_a_model_without_a_lattice_says_so(part: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plain.safetensors"
    write_model(tiny_model(), path, make_tables())
    monkeypatch.setattr(loading, "_loaded", {})  # other tests have the same model elsewhere
    model = load_model(str(path))
    data = coded(part, model=str(path), quantizer="e8")
    monkeypatch.setattr(model, "lattice", None)
    assert Image.open(BytesIO(coded(part, model=str(path)))).info["quantizer"] == "scalar"
    with pytest.raises(ValueError, match="its quantizer is 'scalar'"):
        coded(part, model=str(path), quantizer="e8")
    with pytest.raises(OSError, match="its quantizer is 'scalar'"):
        pixels_of(data)
    assert torch.is_grad_enabled()


def test_points_do_not_depend_on_the_precision_of_products() -> None:
    x = np.random.default_rng(4).normal(scale=300, size=(2000, 16)).astype(np.float32)
    expected = lattice.quantise(x, lattice.BW16)
    torch.set_float32_matmul_precision("medium")
    try:
        found = lattice.quantise(x, lattice.BW16)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))

from __future__ import annotations

import numpy as np
import pytest
import reference_decoder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pillow_lic.entropy.coder import LIMIT, SymbolDecoder, SymbolEncoder
from pillow_lic.entropy.tables import TOTAL, Tables
from pillow_lic.models.loading import load_model
from pillow_lic.training.probabilities import make_tables, sigma_of

FREQUENCIES, LENGTHS = make_tables()
SKIP = 4
TABLES = Tables.mirrored(FREQUENCIES, LENGTHS, SKIP)
HALVES = [half.tolist() for half in np.split(FREQUENCIES, np.cumsum(LENGTHS)[:-1])]


def encode(symbols: np.ndarray, indices: np.ndarray) -> bytes:
    coder = SymbolEncoder()
    coder.encode(symbols, indices, TABLES)
    return coder.finish()


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, 64, count).astype(np.uint8)
    sigma = np.array([sigma_of(i) for i in range(64)])[indices]
    symbols = np.rint(rng.normal(size=count) * sigma).astype(np.int16)
    symbols[indices < SKIP] = 0
    return symbols, indices


@st.composite
def passes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    count = draw(st.integers(0, 60))
    indices = draw(hnp.arrays(np.uint8, count, elements=st.integers(0, 63)))
    symbols = draw(hnp.arrays(np.int16, count, elements=st.integers(-LIMIT, LIMIT)))
    symbols[indices < SKIP] = 0
    return symbols, indices


@given(st.lists(passes(), max_size=3))
def test_any_symbols_in_any_passes_come_back(parts: list[tuple[np.ndarray, np.ndarray]]) -> None:
    coder = SymbolEncoder()
    for symbols, indices in parts:
        coder.encode(symbols, indices, TABLES)
    decoder = SymbolDecoder(coder.finish())
    for symbols, indices in parts:
        assert np.array_equal(decoder.decode(indices, TABLES), symbols)


@settings(max_examples=25, deadline=None)
@given(passes())
def test_a_decoder_written_from_the_specification_agrees(part: tuple[np.ndarray, np.ndarray]) -> None:
    symbols, indices = part
    found = reference_decoder.decode(encode(symbols, indices), indices.tolist(), HALVES, SKIP)
    assert found == symbols.tolist()


def test_the_reference_decoder_agrees_on_typical_symbols() -> None:
    symbols, indices = drawn(1500, 5)
    found = reference_decoder.decode(encode(symbols, indices), indices.tolist(), HALVES, SKIP)
    assert found == symbols.tolist()


def test_length_is_within_half_a_percent_of_ideal() -> None:
    symbols, indices = drawn(100_000, 1)
    ideal = TABLES.bits(symbols, indices).sum() / 8
    assert ideal <= len(encode(symbols, indices)) <= 1.005 * ideal


def test_ideal_length_counts_escapes_with_their_tails() -> None:
    rng = np.random.default_rng(2)
    indices = np.full(3000, 10, np.uint8)
    symbols = rng.integers(-3000, 3000, 3000).astype(np.int16)
    ideal = TABLES.bits(symbols, indices).sum() / 8
    assert len(encode(symbols, indices)) == pytest.approx(ideal, rel=0.002)


def test_skipped_tables_cost_nothing() -> None:
    indices = np.zeros(100_000, np.uint8)
    assert encode(np.zeros(100_000, np.int16), indices) == b""
    assert not SymbolDecoder(b"").decode(indices, TABLES).any()


def test_a_magnitude_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="lower quality"):
        encode(np.array([LIMIT + 1]), np.array([40], np.uint8))


@given(st.binary(max_size=200), st.integers(0, 63))
def test_garbage_decodes_to_symbols_or_an_error(data: bytes, index: int) -> None:
    try:
        symbols = SymbolDecoder(data).decode(np.full(50, index, np.uint8), TABLES)
    except OSError:
        return
    assert int(np.abs(symbols.astype(int)).max()) <= LIMIT


def test_tables_are_checked() -> None:
    bad = FREQUENCIES.copy()
    bad[0] += 1
    with pytest.raises(ValueError, match="sum to"):
        Tables.mirrored(bad, LENGTHS, SKIP)
    bad[0] = -5
    with pytest.raises(ValueError, match="below 1"):
        Tables.mirrored(bad, LENGTHS, SKIP)
    with pytest.raises(ValueError, match="lengths"):
        Tables.mirrored(FREQUENCIES[:-1], LENGTHS, SKIP)
    with pytest.raises(ValueError, match="skips all"):
        Tables.mirrored(FREQUENCIES, LENGTHS, 64)


def test_shipped_tables_are_symmetric_and_fall_off() -> None:
    tables = load_model("mse").tables
    for index, frequencies in enumerate(tables.frequencies):
        body = frequencies[:-1]
        assert int(frequencies.sum()) == TOTAL
        assert np.array_equal(body, body[::-1])
        assert (np.diff(body[tables.reach[index] :]) <= 0).all()

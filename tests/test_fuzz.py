"""A short run of every kind of hostile file; ``python -m fuzz.run`` makes long ones (docs/security.md)."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from unittest.mock import ANY

import pytest
from fuzz import cases, oracle, run, seeds
from fuzz.oracle import BrokenPromiseError, Oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pillow_lic import container, symbols
from pillow_lic.container import Reader
from pillow_lic.header import CONTEXTS, MODES, QUANTIZERS, Header

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _golden_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(seeds.GOLDEN))
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before


@pytest.mark.parametrize(
    ("layer", "count"),
    [("container", 4000), ("payload", 200), ("file", 300), ("png", 100), ("symbols", 30), ("model", 40)],
)
def test_a_short_run(layer: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run.run(layer, count, seed=7)
    assert sum(result["outcomes"].values()) == count  # type: ignore[attr-defined]
    assert 0 <= result["grown_mb"] < 200  # type: ignore[operator]


def test_every_layer_gets_past_the_door() -> None:
    """Cases that are all refused at the first check would prove nothing."""
    outcomes = run.run("file", 300, seed=3)["outcomes"]
    assert outcomes["picture"] > 5  # type: ignore[index]
    assert outcomes["refused"] > 100  # type: ignore[index]


hostile_chunks = st.lists(
    st.builds(
        cases.Chunk,
        st.sampled_from(cases.KINDS),
        st.binary(max_size=40),
        st.none() | st.integers(0, 2**35 - 1) | st.sampled_from(cases.EDGES),
        st.none() | st.integers(0, 2**32 - 1),
    ),
    max_size=6,
)

hostile_headers = st.builds(
    Header,
    st.integers(0, 2**25),
    st.integers(0, 2**25),
    st.sampled_from(MODES),
    st.binary(min_size=8, max_size=8),
    st.integers(0, 2**16 - 1),
    st.sampled_from(CONTEXTS),
    st.sampled_from(QUANTIZERS),
    st.integers(0, 70).map(lambda n: 64 * n),
    st.integers(1, 2**17),
    st.booleans(),
)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(hostile_headers, hostile_chunks)
def test_any_chunks_behind_any_header(header: Header, chunks: list[cases.Chunk]) -> None:
    Oracle().read(cases.assemble([cases.Chunk(b"HEAD", header.pack()), *chunks]))


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.deferred(lambda: st.sampled_from(sorted(seeds.seeds()))), st.randoms(use_true_random=False))
def test_any_change_of_a_right_file(name: str, rng: random.Random) -> None:
    Oracle().load(cases.mutated(seeds.seeds()[name], rng))


@given(st.integers(0, 2**32), st.integers(0, 2**32), st.integers(0, 40))
def test_a_false_header_makes_no_reader_wait_or_allocate(width: int, height: int, tile: int) -> None:
    chunk = cases.Chunk(b"HEAD", Header(width, height, "RGB", b"12345678", 0, tile=64 * tile).pack())
    file = BytesIO(cases.assemble([chunk, cases.Chunk(b"FRAM", b"x" * 40)]))
    started = time.process_time()
    tracemalloc.start()
    try:
        reader = Reader(file)
        reader.metadata()
        assert reader.frame(0).tiles
    except OSError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * 2**20
    assert time.process_time() - started < 1


def test_coverage_guided() -> None:
    pytest.importorskip("atheris", reason="needs atheris, which has wheels for Linux")
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.atheris_lic", "-max_total_time=3", "-seed=1", "-verbosity=0"],
        cwd=HERE,
        env=os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]


# -- the oracle finds what it should -------------------------------------------------------


def test_a_planted_crash_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(container, "_split", lambda payload, count, whole: [payload[:count][count - 1]])
    with pytest.raises(BrokenPromiseError, match="undocumented"):
        run.run("container", 3000, seed=1)
    assert list(tmp_path.glob("broken-container-1-*"))


def test_a_planted_hang_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "SECONDS", 0.0)
    with pytest.raises(BrokenPromiseError, match="took"):
        Oracle().read(seeds.seeds()["grey"])


def test_a_planted_allocation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = seeds.seeds()["grey"]
    watcher, kept = Oracle(warm=20), []
    for _ in range(30):
        watcher.read(right)
    assert watcher.grown() < 2**24
    unpack = Header.unpack
    monkeypatch.setattr(Header, "unpack", lambda payload: kept.append(bytearray(b"x") * 2**28) or unpack(payload))
    with pytest.raises(BrokenPromiseError, match="grew by"):
        watcher.read(right)


def test_a_planted_silent_corruption_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A decoder that does not compare the symbols' checksum shows wrong pictures."""
    monkeypatch.chdir(tmp_path)
    assert run.run("payload", 50, seed=1)

    monkeypatch.setattr(symbols, "_checksums", lambda tile: [ANY] * tile.tiles)
    with pytest.raises(BrokenPromiseError, match="a wrong picture without a word"):
        run.run("payload", 200, seed=1)

"""The commands that measure speed work; no test asserts a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import load

from pillow_lic.bench import scaling, stages, throughput
from pillow_lic.cli import main
from pillow_lic.entropy.coder import SymbolDecoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "photos"
    path.mkdir()
    load("coffee").save(path / "a.png")
    return path


def test_a_profile(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = SymbolDecoder.decode
    assert main(["bench", str(folder), "--profile"]) == 0
    assert SymbolDecoder.decode is before
    out = capsys.readouterr().out
    assert all(stage in out for stage in stages.STAGES)
    image = load("coffee")
    for profile in stages.profile([image], rounds=1):
        assert all(ms > 0 for ms in profile.stages.values()), profile


def test_worker_processes_beside_a_plain_loop(folder: Path) -> None:
    steps: list[tuple[int, int]] = []
    text = throughput.compare(folder, 2, 1, lambda *step: steps.append(step))
    assert steps[-1] == (4, 4)
    assert [line.split("  ")[0] for line in text.splitlines()[2:]] == [
        "encode, plain loop", "encode, --jobs 1", "decode, plain loop", "decode, --jobs 1",
    ]  # fmt: skip


def test_the_first_picture(folder: Path) -> None:
    assert "import torch" in throughput.first_picture(folder, rounds=1)


def test_plots(folder: Path, tmp_path: Path) -> None:
    files, sizes = scaling.by_files(folder, (2,), 1), scaling.by_size(folder, (64,))
    scaling.plot(tmp_path / "plots" / "scaling.png", files, sizes)
    assert (tmp_path / "plots" / "scaling.png").stat().st_size > 1000
    assert scaling.text(files, sizes).splitlines()[-1].split()[0] == "0.0"

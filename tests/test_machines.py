"""Other instruction sets and precisions, in processes of their own; ``machines.py`` compares any two machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import machines
import pytest

SETTINGS = [
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "PILLOW_LIC_PRECISION": "float32"},
    {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILLOW_LIC_MODELS", str(machines.HERE / "golden"))
        machines.write(folder, small=True)
    return folder


def checked(folder: Path, setting: dict[str, str]) -> dict[str, object]:
    command = [sys.executable, machines.__file__, "check", str(folder)]
    done = subprocess.run(command, env=os.environ | setting, capture_output=True, text=True)
    assert done.stdout, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    assert done.returncode == bool(found["wrong"])
    return found


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_symbols_are_the_same_and_pixels_within_a_rounding(written: Path, setting: dict[str, str]) -> None:
    found = checked(written, setting)
    assert found["wrong"] == []
    assert found["files"] > 30  # type: ignore[operator]
    # 1 with the project's own models; a value of the published codec's file differs by 2 in bfloat16.
    assert found["largest"] <= 2  # type: ignore[operator]


def test_a_planted_difference_is_found(written: Path, tmp_path: Path) -> None:
    """Another machine's record with one symbol's worth of difference, and one file that it coded otherwise."""
    record = json.loads((written / "record.json").read_text())
    (first, second), files = list(record["files"])[:2], record["files"]
    for name in (first, second):
        for suffix in ("lic", "npy"):
            (tmp_path / f"{name}.{suffix}").write_bytes((written / f"{name}.{suffix}").read_bytes())
    data = bytearray((tmp_path / f"{first}.lic").read_bytes())
    data[-7] ^= 1
    (tmp_path / f"{first}.lic").write_bytes(data)
    record["files"] = {first: files[first], second: "0" * 64}
    (tmp_path / "record.json").write_text(json.dumps(record))
    wrong = checked(tmp_path, {})["wrong"]
    assert [line.partition(":")[0] for line in wrong] == [first, second]  # type: ignore[attr-defined]

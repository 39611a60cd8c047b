from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import kill_batch
import pytest
from conftest import load
from PIL import Image

from pillow_lic.batch import convert, worker
from pillow_lic.batch.plan import Settings, Task


@pytest.mark.parametrize("kind", ["interrupt", "main", "worker", "cluster"])
def test_a_killed_conversion_ends_as_an_undisturbed_one(kind: str, tmp_path: Path) -> None:
    (done,) = kill_batch.run(kind, 1, 24, 3, tmp_path)  # after five or six files
    assert 0 < done < 24


def test_a_file_that_kills_its_process_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "deadly", "b"):
        load("camera").crop((0, 0, 32, 32)).save(folder / f"{name}.png")
    monkeypatch.setattr("pillow_lic.batch.engines.convert_all", die_of_one)
    summary = convert([folder], tmp_path / "out", jobs=2, keep_going=True)
    assert summary.converted == 2
    (failure,) = summary.failures
    assert failure.source.endswith("deadly.png")
    assert "died" in str(failure.error)
    with Image.open(tmp_path / "out" / "b.lic") as image:
        assert image.size == (32, 32)


def die_of_one(tasks: list[Task], settings: Settings) -> list[worker.Result]:
    if tasks[0].source.name == "deadly.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return worker.convert_all(tasks, settings)


def test_a_file_that_kills_workers_of_a_cluster_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import LocalCluster
    from distributed.scheduler import KilledWorker

    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "deadly", "b"):
        load("camera").crop((0, 0, 32, 32)).save(folder / f"{name}.png")

    def killed_by_one(tasks: list[Task], settings: Settings) -> list[worker.Result]:
        if any(task.source.name == "deadly.png" for task in tasks):
            raise KilledWorker("convert_all", SimpleNamespace(address="tcp://dead"), 3)
        return worker.convert_all(tasks, settings)

    monkeypatch.setattr("pillow_lic.batch.engines.convert_all", killed_by_one)
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with LocalCluster(**options) as cluster:
        summary = convert([folder], tmp_path / "out", scheduler=cluster.scheduler_address, keep_going=True)
    assert summary.converted == 2
    (failure,) = summary.failures
    assert failure.source.endswith("deadly.png")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.lic")) == ["a.lic", "b.lic"]

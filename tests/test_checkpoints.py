"""Reading checkpoints: what is taken, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pillow_lic.models.compressai.checkpoint import read_checkpoint
from pillow_lic.training.compressai import import_checkpoints, qualities_of


def checkpoint(name: str) -> Path:
    return Path(__file__).parent / "published" / f"{name}.pth.tar"


def state_of(name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(checkpoint(name), weights_only=True)["state_dict"]
    return found


def refused(tmp_path: Path, state: object, architecture: str, message: str) -> None:
    path, target = tmp_path / "given.pth", tmp_path / "made.safetensors"
    torch.save(state, path)
    with pytest.raises(ValueError, match=message) as caught:
        import_checkpoints([path], architecture, target)
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["given.pth"]


def test_another_architecture(tmp_path: Path) -> None:
    refused(
        tmp_path,
        state_of("mbt2018-3"),
        "mbt2018-mean",
        "entropy_parameters.*not belong to it; it is one of mbt2018$",
    )
    refused(tmp_path, state_of("mbt2018-mean-2"), "mbt2018", r"context_prediction.weight is missing; .*mbt2018-mean")
    refused(tmp_path, state_of("mbt2018-mean-2"), "bmshj2018-hyperprior", r"h_s.0.weight has the shape \(16, 24,")
    refused(tmp_path, state_of("bmshj2018-factorized-3"), "cheng2020-anchor", "g_a.0.conv1.weight is missing")
    with pytest.raises(ValueError, match="unknown architecture 'vtm'; known: bmshj2018-factorized, "):
        import_checkpoints([checkpoint("mbt2018-3")], "vtm", tmp_path / "x.safetensors")


def test_missing_and_extra_keys(tmp_path: Path) -> None:
    state = state_of("mbt2018-mean-2")
    refused(tmp_path, {k: v for k, v in state.items() if k != "h_a.2.bias"}, "mbt2018-mean", "h_a.2.bias is missing")
    refused(tmp_path, state | {"h_a.6.bias": torch.zeros(3)}, "mbt2018-mean", "h_a.6.bias does not belong to it")
    refused(tmp_path, {"epoch": 3}, "mbt2018-mean", "epoch is no tensor")
    refused(tmp_path, [1, 2], "mbt2018-mean", "holds no state dictionary")


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    state = state_of("mbt2018-mean-2")
    state["g_s.2.weight"][3, 1, 2, 2] = torch.nan
    refused(tmp_path, state, "mbt2018-mean", "g_s.2.weight is not finite")


class Runs:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_a_pickle_that_would_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, {"state_dict": Runs()}, "mbt2018-mean", "more than tensors")
    (tmp_path / "given.pth").write_bytes(b"no checkpoint at all")
    with pytest.raises(ValueError, match=r"given\.pth"):
        read_checkpoint(tmp_path / "given.pth", "mbt2018")
    with pytest.raises(ValueError, match="there is no checkpoint nowhere"):
        read_checkpoint(Path("nowhere"), "mbt2018")


def test_qualities() -> None:
    published = ["mbt2018-mean-1-e522738d.pth.tar", "mbt2018-mean-8-8089ae3e.pth.tar"]
    assert list(qualities_of(published)) == [1, 8]
    assert qualities_of(["a.pth"]) == {4.0: Path("a.pth")}
    assert qualities_of(["2=lambda=0.01/ck.pth", "my-3-layers-7.pth"]) == {
        2.0: Path("lambda=0.01/ck.pth"), 7.0: Path("my-3-layers-7.pth"),
    }  # fmt: skip
    with pytest.raises(ValueError, match="both of quality"):
        qualities_of(["2=a.pth", "2.001=b.pth"])
    assert qualities_of(["3=a.pth", "2.5=b-7.pth"]) == {2.5: Path("b-7.pth"), 3.0: Path("a.pth")}
    with pytest.raises(ValueError, match=r"x-3\.pth and 3=|x-3\.pth and y\.pth are both of quality 3"):
        qualities_of(["x-3.pth", "3=y.pth"])
    with pytest.raises(ValueError, match=r"quality of b\.pth cannot be told"):
        qualities_of(["a-1.pth", "b.pth"])
    with pytest.raises(ValueError, match="from 1 to 8, not 9"):
        qualities_of(["9=a.pth"])


def test_names_of_older_checkpoints(tmp_path: Path) -> None:
    names = {"matrices.": "_matrix", "biases.": "_bias", "factors.": "_factor"}
    state = {}
    for key, value in state_of("mbt2018-mean-2").items():
        for new, old in names.items():
            key = key.replace(f"entropy_bottleneck.{new}", f"entropy_bottleneck.{old}")
        state[f"module.{key}"] = value
    torch.save(state, tmp_path / "old.pth")
    old = read_checkpoint(tmp_path / "old.pth", "mbt2018-mean").state_dict()
    new = read_checkpoint(checkpoint("mbt2018-mean-2"), "mbt2018-mean").state_dict()
    assert all(torch.equal(old[k], new[k]) for k in new)

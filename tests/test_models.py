"""The command ``lic models``, and files whose model is not installed."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import coded
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save

from pillow_lic import container
from pillow_lic.cli import main
from pillow_lic.header import Header
from pillow_lic.models import finding, loading
from pillow_lic.models.errors import ModelError
from pillow_lic.models.transforms import Architecture

CHECKPOINTS = Path(__file__).parent / "published"
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one imported model, of two qualities."""
    found = tmp_path_factory.mktemp("models")
    given = [str(CHECKPOINTS / f"mbt2018-mean-{q}.pth.tar") for q in (2, 5)]
    output = ["--architecture", "mbt2018-mean", "--output", str(found / "mean.safetensors")]
    assert main(["models", "import", *given, *output]) == 0
    return found


@pytest.fixture
def _installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(folder))
    monkeypatch.setattr(loading, "_loaded", {})


def test_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "one.safetensors"
    given = ["models", "import", f"6.5={CHECKPOINTS / 'mbt2018-3.pth.tar'}", "--architecture", "mbt2018"]
    assert main([*given, "--output", str(target), "--images", str(CHECKPOINTS.parent / "images")]) == 0
    out = capsys.readouterr().out
    assert "quality 6.5: mbt2018-3.pth.tar, 16 channels, 24 latents, exactness costs +0." in out
    manifest = json.loads(target.with_suffix(".json").read_text())
    assert manifest["identity"] == loading.load_model(str(target)).identity.hex()
    assert (manifest["name"], manifest["architecture"], manifest["calibration"]) == ("one", "mbt2018", "images")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.json", "one.safetensors"]


def test_imports_that_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two, three = (str(CHECKPOINTS / f"mbt2018-{n}.pth.tar") for n in ("mean-2", "3"))
    output = ["--output", str(tmp_path / "x.safetensors")]
    assert main(["models", "import", two, "--architecture", "mbt2018", *output]) == 1
    assert f"{two} is no checkpoint of mbt2018: the key context_prediction.weight" in capsys.readouterr().err
    assert main(["models", "import", two, f"2={three}", "--architecture", "mbt2018", *output]) == 2
    assert f"{two} and {three} are both of quality 2" in capsys.readouterr().err
    assert main(["models", "import", two, "--architecture", "vtm", *output]) == 2
    assert main(["models", "import", two, "--architecture", "mbt2018-mean", "--output", "x.pth"]) == 2
    assert main(["models", "import", two, "--architecture", "mbt2018-mean", *output, "--images", str(tmp_path)]) == 1
    assert "no images (" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_installed")
def test_list_and_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity = loading.load_model("mean").identity.hex()
    assert main(["models", "list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert identity in rows["mean"]
    assert "mbt2018-mean" in rows["mean"]
    assert str(folder) in rows["mean"]
    assert "native" in rows["mse"]
    assert main(["models", "show", "mean"]) == 0
    out = capsys.readouterr().out
    for part in (identity, "mbt2018-mean", "qualities     2, 5", "16 (24 latents), 20 (32 latents)", "exactness costs"):
        assert part in out
    assert main(["models", "show", "mse"]) == 0
    assert "continuous" in capsys.readouterr().out
    assert main(["models", "show", "nothing"]) == 1
    assert "no model 'nothing' is installed; there are: mean, ms-ssim, mse" in capsys.readouterr().err


@pytest.mark.usefixtures("_installed")
def test_verify(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "verify"]) == 0
    out = capsys.readouterr().out
    assert f"{folder / 'mean.safetensors'}: " in out
    assert out.count("as its manifest says, exact") == 3
    data = bytearray((folder / "mean.safetensors").read_bytes())
    data[-9] ^= 1
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(data)
    broken.with_suffix(".json").write_text((folder / "mean.json").read_text())
    assert main(["models", "verify", str(broken)]) == 1
    assert "is not the file of its manifest" in capsys.readouterr().err


@pytest.mark.usefixtures("_installed")
def test_a_file_says_which_model_is_missing(
    folder: Path,
    small: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = coded(small, model="mean")
    identity = loading.load_model("mean").identity.hex()
    (tmp_path / "x.lic").write_bytes(data)
    assert main(["info", str(tmp_path / "x.lic")]) == 0
    assert f"{identity} mean" in capsys.readouterr().out
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(tmp_path))
    monkeypatch.setattr(loading, "_loaded", {})
    with Image.open(io.BytesIO(data)) as image:
        assert (image.info["model_id"], image.info["model_name"]) == (identity, "mean")
        with pytest.raises(OSError, match=rf"model 'mean' {identity}, which is not installed; put its .safetensors"):
            image.load()
    (tmp_path / "mean.safetensors").write_bytes((folder / "mean.safetensors").read_bytes() + b" ")
    with Image.open(io.BytesIO(data)) as image, pytest.raises(OSError, match=r"mean.safetensors is another one\)"):
        image.load()


def test_files_of_shipped_models_need_no_name(photo: Image.Image) -> None:
    data = coded(photo)
    assert b"modl" not in data
    with Image.open(io.BytesIO(data)) as image:
        assert "model_name" not in image.info


def test_a_name_is_only_shown() -> None:
    header = Header(16, 16, "RGB", bytes(8), 0, model_name="a\nb\x1b[2J" + "ü" * 200)
    data = container.write(header, {}, [container.Frame([bytes(4)])])
    reader = container.Reader(io.BytesIO(data))
    reader.metadata()
    assert reader.header.model_name.startswith("a?b?[2Jü")
    assert reader.header.model_name.isprintable()
    assert np.frombuffer(data, np.uint8).size < 330


@pytest.mark.parametrize("manifest", [b"[" * 100_000, b"\xff", b"[]", b'{"identity": 1' + b"0" * 5000 + b"}", b""])
def test_a_hostile_manifest_hides_no_model(
    manifest: bytes, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mean.safetensors").write_bytes((folder / "mean.safetensors").read_bytes())
    (tmp_path / "mean.json").write_bytes(manifest)
    (tmp_path / "no-file.safetensors").mkdir()
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(tmp_path))
    monkeypatch.setattr(loading, "_loaded", {})
    found = loading.load_model("mean")
    assert loading.model_by_identity(found.identity) is found


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"lattice": 2}, "impossible lattice"),
        ({"lattice": 9}, "impossible lattice"),  # bw16 and h24 lower it by two, below what is coded
        ({"lattice": 12.5}, "impossible lattice"),
        ({"skip": 60}, "impossible lattice"),
        ({"distortion": "bogus"}, "unknown distortion"),
    ],
)
def test_models_that_say_what_cannot_be_are_damaged(said: dict[str, object], message: str, tmp_path: Path) -> None:
    with safe_open(GOLDEN / "lattice.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["pillow-lic"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(save(tensors, metadata={"pillow-lic": json.dumps(about | said)}))
    with pytest.raises(ModelError, match=message):
        loading.load_model(str(path))


def test_verify_reads_what_codes_lattices_alone(tmp_path: Path) -> None:
    with safe_open(GOLDEN / "lattice.safetensors", framework="pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("context.none.")}  # noqa: SIM118
    path = tmp_path / "partial.safetensors"
    path.write_bytes(save(tensors, metadata=about))
    with pytest.raises(ModelError, match="partial"):
        loading.verify(loading.load_model(str(path)))


def test_a_home_that_nobody_may_look_into(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    closed, stat = tmp_path / "closed", os.stat

    def refused(path: object, *args: object, **kwargs: object) -> os.stat_result:
        if str(path).startswith(str(closed)):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setenv("XDG_DATA_HOME", str(closed))
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(closed / "mine"))
    monkeypatch.setattr(os, "stat", refused)
    assert finding.path_of("mse") in finding.installed()


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(finding, "user_data_path", nowhere)
    assert finding.path_of("mse") is not None
    with pytest.raises(OSError, match=r"put its [.]safetensors file into a folder named in PILLOW_LIC_MODELS"):
        loading.model_by_identity(b"nobody's")


@pytest.mark.usefixtures("_installed")
def test_verify_goes_on_after_a_damaged_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"none")
    assert main(["models", "verify", str(damaged), str(folder / "mean.safetensors"), "nobody"]) == 1
    found = capsys.readouterr()
    assert "mean.safetensors" in found.out
    assert "damaged.safetensors" in found.err
    assert "nobody" in found.err


def test_copies_of_a_model_have_files_of_their_own_beside_them(
    small: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mse = loading.load_model("mse")
    plain, volume = coded(small), coded(small, context="volume")
    (tmp_path / "mse-0.1.safetensors").write_bytes(mse.path.read_bytes())
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(tmp_path))
    monkeypatch.setattr(loading, "_loaded", {})
    kept = coded(small, model="mse-0.1")
    with Image.open(io.BytesIO(kept)) as image:
        assert image.info["model_name"] == "mse-0.1"
        image.load()
    with Image.open(io.BytesIO(volume)) as image:  # which the copy cannot decode
        image.load()
    assert coded(small) == plain  # as if nobody had loaded the copy first
    assert "volume" in loading.load_model("mse").contexts
    assert "volume" not in loading.load_model("mse-0.1").contexts
    assert loading.model_by_identity(mse.identity).path == mse.path


def test_a_model_replaced_by_another_that_is_in_use(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (folder / "mean.safetensors").read_bytes()
    (tmp_path / "mine.safetensors").write_bytes(data)
    (tmp_path / "mine.json").write_text('{"identity": "0123456789abcdef"}')
    monkeypatch.setenv("PILLOW_LIC_MODELS", f"{folder}{os.pathsep}{tmp_path}")
    loading.load_model("mean")
    with pytest.raises(ModelError, match="damaged or was replaced"):
        loading.load_model("mine")


def test_a_model_by_a_relative_path_stays_where_it_is(
    tiny: str, small: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_loaded", {})
    (tmp_path / "mine.safetensors").write_bytes(Path(tiny).read_bytes())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    coded(small, model="mine.safetensors", context="none")
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(tmp_path))
    data = coded(small, model="mine.safetensors", context="channel")
    monkeypatch.setattr(loading, "_loaded", {})
    coded(small, model="mine.safetensors", context="none")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with Image.open(io.BytesIO(data)) as image:  # whose context model is read now
        image.load()


def test_a_damaged_model_hides_others_of_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mean.safetensors").write_bytes(b"none")
    monkeypatch.setenv("PILLOW_LIC_MODELS", f"{tmp_path}{os.pathsep}{folder}")
    assert main(["models", "list"]) == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("mean "))
    assert "hidden" not in first
    assert second.endswith("(hidden by the one above)")


def test_an_architecture_of_fractions_is_none() -> None:
    with pytest.raises(ValueError, match="are whole"):
        Architecture(synthesis=(4.0, 2.0))  # type: ignore[arg-type]

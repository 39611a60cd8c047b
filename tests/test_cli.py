from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import IMAGES, psnr
from PIL import ExifTags, Image

from pillow_lic import cli, extras
from pillow_lic.cli import common, main
from pillow_lic.pictures import image_files


@pytest.fixture
def source(photo: Image.Image, tmp_path: Path) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "somebody"
    path = tmp_path / "photo.png"
    photo.save(path, exif=exif)
    return path


def test_convert_there_and_back(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, back = tmp_path / "x.lic", tmp_path / "out.png"
    assert main(["convert", str(source), str(target), "--quality", "5"]) == 0
    assert main(["convert", str(target), str(back)]) == 0
    out = capsys.readouterr().out
    assert f"{target.stat().st_size} bytes, {8 * target.stat().st_size / (256 * 192):.4f} bpp" in out
    with Image.open(back) as image, Image.open(source) as original:
        assert psnr(image, original) > 32
        assert image.getexif()[ExifTags.Base.Artist] == "somebody"
    assert {p.name for p in tmp_path.iterdir()} == {"photo.png", "x.lic", "out.png"}


def test_info(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "x.lic"
    main(["convert", str(source), str(target), "--quality", "2.5"])
    capsys.readouterr()
    assert main(["info", "--verify", str(target)]) == 0
    out = capsys.readouterr().out
    for part in ("256 x 192, RGB", " bpp", "2.5", "context staircase", "exif (", "checksums right"):
        assert part in out


def test_transcode(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, small = tmp_path / "plain.lic", tmp_path / "small.lic"
    main(["convert", str(source), str(plain), "--context", "none"])
    capsys.readouterr()
    assert main(["transcode", str(plain), str(small)]) == 0
    out = capsys.readouterr().out
    assert f"{plain.stat().st_size} -> {small.stat().st_size} bytes" in out
    assert small.stat().st_size <= plain.stat().st_size
    with Image.open(plain) as one, Image.open(small) as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))
        assert one.info["exif"] == other.info["exif"]
    before = plain.read_bytes()
    assert main(["transcode", "--context", "none", str(small), str(small)]) == 0
    assert small.read_bytes() == before


def test_failures(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "x.lic"
    main(["convert", str(source), str(target)])
    target.write_bytes(target.read_bytes()[:-9])
    cases = [
        (["info", str(source)], 1, "is not a LIC file"),
        (["info", "--verify", str(source)], 1, "is not a LIC file"),
        (["info", str(tmp_path / "none.lic")], 1, "No such file"),
        (["info", "--verify", str(target)], 1, "truncated"),
        (["convert", str(target), str(tmp_path / "y.png")], 1, "truncated"),
        (["convert", str(source), str(tmp_path / "y.lic"), "--quality", "12"], 2, "quality must be"),
        (["convert", str(source), str(tmp_path / "y.lic"), "--context", "magic"], 2, "context must be"),
        (["convert", str(source), str(tmp_path / "y.xyz")], 2, "no format"),
        (["convert", str(source), str(tmp_path / "y.psd")], 2, "no format that can be written"),
        (["convert", str(target), str(tmp_path / "y.pdf"), "--psnr"], 2, "does not read them"),
        (["convert", str(target), str(tmp_path / "folder") + "/", "--to", "pdf", "--psnr"], 2, "does not read them"),
        (["convert", str(source), str(tmp_path / "y.lic"), "--model", "none"], 1, "no model 'none'"),
        (["transcode", str(source), str(tmp_path / "y.lic")], 1, "is not a LIC file"),
        (["transcode", str(target), str(tmp_path / "y.lic")], 1, "truncated"),
        (["transcode", str(target), str(tmp_path / "y.lic"), "--context", "magic"], 2, "context must be"),
        (["bench", str(tmp_path / "nowhere")], 1, "no images"),
        (["bench", str(tmp_path), "--codecs", "gif"], 2, "no codec 'gif'"),
        (["bench", str(tmp_path), "--contexts", "--crop", "64"], 2, "--contexts takes no --crop"),
        (["bench", str(tmp_path), "--variants", "scalar", "--codecs", "jpeg"], 2, "--variants takes no --codecs"),
        (["bench", str(tmp_path), "--profile", "--codecs", "jpeg"], 2, "with the defaults, without --codecs"),
    ]
    for argv, code, message in cases:
        assert main(argv) == code, argv
        captured = capsys.readouterr()
        assert message in captured.err
    assert {p.name for p in tmp_path.iterdir()} == {"photo.png", "x.lic"}
    assert main(["convert", str(target), str(tmp_path / "y.png"), "--json"]) == 1
    (failure,) = json.loads(capsys.readouterr().out)["failures"]
    assert (failure["source"], "truncated" in failure["error"]) == (str(target), True)
    main(["convert", str(source), str(tmp_path / "whole.lic")])
    capsys.readouterr()
    assert main(["info", "--verify", str(target), str(tmp_path / "whole.lic"), str(source)]) == 1
    captured = capsys.readouterr()
    assert f"{target}: truncated" in captured.err
    assert f"{source} is not a LIC file" in captured.err
    assert captured.out.startswith(str(tmp_path / "whole.lic"))


def test_a_missing_package_names_its_extra(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = extras.find_spec
    missing = {"matplotlib", "bjontegaard", "distributed", "psutil"}
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in missing else found(name))
    recipe = str(Path(__file__).parent.parent / "recipes" / "fine-tune.toml")
    folders = [str(source.parent), str(tmp_path / "out") + "/"]
    train = [recipe, "--data", folders[0], "--validation", folders[0], "--run", folders[1]]
    for extra, names, argv in (
        ("bench", "bjontegaard and matplotlib", ["bench", folders[0]]),
        ("bench", "bjontegaard", ["bench", folders[0], "--variants", "scalar", "h24"]),
        ("bench", "psutil", ["bench", folders[0], "--profile", "--throughput", "2"]),
        ("train", "bjontegaard", ["train", *train, "--output", str(tmp_path / "x.safetensors")]),
        ("dask", "distributed", ["convert", *folders, "--engine", "dask", "--scheduler", "tcp://127.0.0.1:1"]),
    ):
        assert main(argv) == 1
        assert f'{names} missing: pip install "pillow-lic[{extra}]"' in capsys.readouterr().err


def test_full_memory_ends_a_command_with_a_message(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pillow_lic.container.Reader.verify", full)
    assert main(["convert", str(source), str(source.with_suffix(".lic"))]) == 0
    assert main(["info", "--verify", str(source.with_suffix(".lic"))]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "lic info: MemoryError"


def test_usage_errors_exit_with_two() -> None:
    for argv in ([], ["unknown"], ["convert", "one"]):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2


def test_a_failed_conversion_keeps_the_old_file(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.lic"
    assert main(["convert", str(source), str(target)]) == 0
    before = target.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pillow_lic.codec.encode", interrupted)
    assert main(["convert", str(source), str(target)]) == 1
    assert target.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"photo.png", "x.lic"}


def test_modes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("CMYK", (20, 20)).save(tmp_path / "c.jpg")
    assert main(["convert", str(tmp_path / "c.jpg"), str(tmp_path / "c.lic")]) == 0
    Image.new("RGBA", (20, 20)).save(tmp_path / "a.png")
    assert main(["convert", str(tmp_path / "a.png"), str(tmp_path / "a.lic")]) == 0
    for name, mode in (("c", "RGB"), ("a", "RGBA")):
        with Image.open(tmp_path / f"{name}.lic") as image:
            assert image.mode == mode
    Image.new("I;16", (20, 20)).save(tmp_path / "i.png")
    assert main(["convert", str(tmp_path / "i.png"), str(tmp_path / "i.lic")]) == 1
    assert "scale its values" in capsys.readouterr().err


def test_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    with Image.open(IMAGES / "astronaut.png") as image:
        image.crop((0, 0, 176, 176)).save(folder / "a.png")
    output = tmp_path / "results"
    assert main(["bench", str(folder), "--codecs", "jpeg", "webp", "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert "BD-rate of LIC" in out
    results = json.loads((output / "lic.json").read_text())["results"]
    assert results["q"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert all(np.diff(results["bpp"]) > 0)
    assert all(np.diff(results["psnr-rgb"]) > 0)
    every = json.loads((output / "measurements.json").read_text())
    first = next(m for m in every if m["codec"] == "LIC" and m["setting"] == 1)
    assert first["bpp"] == pytest.approx(8 * first["bytes"] / 176**2)
    assert {p.name for p in output.iterdir()} >= {"jpeg.json", "webp.json", "psnr.png", "ms-ssim.png"}


def test_bench_of_variants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", str(IMAGES), "--images", "1", "--crop", "64", "--qualities", "2", "4", "6", "8"]
    argv += ["--output", str(tmp_path / "results")]
    assert main([*argv, "--variants", "scalar:0", "scalar:1"]) == 0
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.split()[:4] == ["scalar,", "effort", "0", "+0.00"]
    assert float(second.split()[3]) < 0
    every = json.loads((tmp_path / "results" / "measurements.json").read_text())
    assert [m["pixels"] for m in every] == [64 * 64] * 8
    assert main([*argv, "--variants", "none/scalar", "autoregressive/scalar"]) == 0
    second = capsys.readouterr().out.splitlines()[2]
    assert second.split()[:4] == ["autoregressive,", "scalar,", "effort", "0"]
    assert float(second.split()[4]) < 0
    assert main([*argv[:7], "2", "--output", argv[-1], "--variants", "none/scalar"]) == 0  # no curve, no BD-rate
    assert capsys.readouterr().out.splitlines()[1].split()[4:6] == ["+nan", "+nan"]
    for wrong in ("scalar:x", "scalar:10", "magic", "magic/scalar", "none/"):
        assert main([*argv, "--variants", wrong]) == 2


def test_the_demo(tmp_path: Path) -> None:
    """The first command of the README, on a small picture."""
    with Image.open(IMAGES / "astronaut.png") as image:
        image.crop((0, 0, 192, 176)).save(tmp_path / "a.png")
    demo = Path(__file__).parent.parent / "examples" / "demo.py"
    argv = [sys.executable, str(demo), str(tmp_path / "a.png")]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "a, 192 x 176" in done.stdout
    names = [f"a-q{quality}.lic" for quality in ("1.5", "3", "5", "7")]
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == [*names, "a.png"]


SMALL_RECIPE = """
name = "small"
[schedule]
minutes = 600
[model]
latents = 64
analysis = [0, 0]
synthesis = [0, 0]
hyper_channels = 16
hyperlatents = 8
[batches]
size = 64
batch = 2
"""


def test_dry_run_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillow_lic.training.run.TABLE_IMAGES", 2)
    recipe, output = tmp_path / "recipe.toml", tmp_path / "m.safetensors"
    argv = ["train", str(recipe), "--data", str(IMAGES), "--output", str(output), "--run", str(tmp_path / "run")]
    recipe.write_text('name = "t"\n[schedule]\nsteps = 9\n[typo]\n')
    assert main(argv) == 2
    recipe.write_text(SMALL_RECIPE)
    assert main([*argv, "--max-steps", "3"]) == 0
    assert json.loads(output.with_suffix(".json").read_text())["training"]["stages"][-1]["steps"] == 3
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    assert main([*argv, "--validation", str(tmp_path / "nowhere"), "--max-steps", "3"]) == 1


@pytest.mark.parametrize("command", [["convert", "-", "x.lic"], ["convert", "x.png", "-"], ["info", "-"]])
def test_standard_input_and_output_are_no_files(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2
    assert "standard input and output" in capsys.readouterr().err


def test_transcode_writes_lic_files_alone(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lic, before = tmp_path / "x.lic", source.read_bytes()
    assert main(["convert", str(source), str(lic)]) == 0
    assert main(["transcode", str(lic), str(source)]) == 2
    assert "must end in .lic" in capsys.readouterr().err
    assert source.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_under_what_is_printed(source: Path, tmp_path: Path) -> None:
    lic = tmp_path / "x.lic"
    assert main(["convert", str(source), str(lic)]) == 0
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "pillow_lic", "info", lic], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode().strip().endswith("No space left on device")


def test_wildcards_where_the_shell_leaves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.lic", "a.lic"):
        (tmp_path / name).touch()
    words = ["info", str(tmp_path / "*.lic"), str(tmp_path / "*.png"), "--verify"]
    assert cli._expanded(words) == words
    monkeypatch.setattr(sys, "platform", "win32")
    assert cli._expanded(words) == ["info", str(tmp_path / "a.lic"), str(tmp_path / "b.lic"), *words[2:]]


def test_a_bar_without_a_place_to_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with common.bar("nothing") as on_progress:
        on_progress(1, 2)


def test_throughput_is_measured_on_linux(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert main(["bench", str(tmp_path), "--throughput", "2"]) == 2
    assert "as Linux tells it" in capsys.readouterr().err


def test_what_was_measured_is_kept_when_a_picture_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    with Image.open(IMAGES / "astronaut.png") as image:
        image.crop((0, 0, 64, 64)).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"none")
    output = tmp_path / "results"
    assert main(["bench", str(folder), "--codecs", "jpeg", "--qualities", "4", "--output", str(output)]) == 1
    assert "b.png cannot be used" in capsys.readouterr().err
    every = json.loads((output / "measurements.json").read_text())
    assert {m["image"] for m in every} == {"a.png"}
    assert {m["codec"] for m in every} == {"LIC", "JPEG"}
    (tmp_path / "file").write_bytes(b"")
    assert main(["bench", str(folder), "--output", str(tmp_path / "file")]) == 1
    assert "file" in capsys.readouterr().err


def test_hidden_files_are_no_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".trash/b.png", "c/d.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in image_files(tmp_path)] == ["a.png", "d.PNG"]

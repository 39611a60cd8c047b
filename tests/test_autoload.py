from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import coded
from PIL import Image

from pillow_lic import autoload
from pillow_lic.cli import main

ROOT = Path(__file__).resolve().parent.parent


def python(code: str, *arguments: object, path: Path = ROOT) -> str:
    """What a fresh interpreter prints that processes a folder of hooks as it does site-packages."""
    start = "import site, sys; site.addsitedir(sys.argv[1])\n"
    command = [sys.executable, "-c", start + code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


OPEN = "from PIL import Image; im = Image.open(sys.argv[2]); print(im.format, im.size)"


def test_a_script_without_an_import(small: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "x.lic").write_bytes(coded(small))
    with pytest.raises(AssertionError, match="UnidentifiedImageError"):
        python(OPEN, tmp_path, tmp_path / "x.lic")
    autoload.turn_on(tmp_path)
    assert python(OPEN, tmp_path, tmp_path / "x.lic") == "LIC (60, 50)"
    save = 'from PIL import Image; Image.new("RGB", (9, 9)).save(sys.argv[1] + "/y.lic")'
    python(save, tmp_path)
    assert (tmp_path / "y.lic").exists()
    autoload.turn_off(tmp_path)
    with pytest.raises(AssertionError, match="UnidentifiedImageError"):
        python(OPEN, tmp_path, tmp_path / "x.lic")


def test_another_module_of_pillow_first(small: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "x.lic").write_bytes(coded(small))
    autoload.turn_on(tmp_path)
    first = "from PIL import ImageFile; ImageFile.LOAD_TRUNCATED_IMAGES = True\n"
    assert python(first + OPEN, tmp_path, tmp_path / "x.lic") == "LIC (60, 50)"
    read = "import imageio.v3 as iio; print(iio.improps(sys.argv[2]).shape)"
    assert python(first + read, tmp_path, tmp_path / "x.lic") == "(50, 60, 3)"


def test_an_import_that_fails_once(small: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "x.lic").write_bytes(coded(small))
    autoload.turn_on(tmp_path)
    fail = "sys.modules['PIL._imaging'] = None\ntry: import PIL.Image\nexcept ImportError: pass\n"
    fail += "del sys.modules['PIL._imaging']\n"
    assert python(fail + OPEN, tmp_path, tmp_path / "x.lic") == "LIC (60, 50)"


def test_imageio_first(small: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "x.lic").write_bytes(coded(small))
    autoload.turn_on(tmp_path)
    read = "import imageio.v3 as iio; print(iio.imread(sys.argv[2]).shape, iio.improps(sys.argv[2]).shape)"
    assert python(read, tmp_path, tmp_path / "x.lic") == "(50, 60, 3) (50, 60, 3)"


def test_asking_whether_pillow_is_there_changes_nothing(small: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "x.lic").write_bytes(coded(small))
    autoload.turn_on(tmp_path)
    ask = "import importlib.util; importlib.util.find_spec('PIL.Image'), importlib.util.find_spec('imageio.config')\n"
    assert python(ask + OPEN, tmp_path, tmp_path / "x.lic") == "LIC (60, 50)"
    read = "import pillow_lic, imageio.v3 as iio; print(iio.improps(sys.argv[2]).shape)"
    assert python("import pillow_lic\n" + ask + read, tmp_path, tmp_path / "x.lic") == "(50, 60, 3)"


def test_nothing_else_is_imported(tmp_path: Path) -> None:
    autoload.turn_on(tmp_path)
    code = "print([m for m in sys.modules if m.split('.')[0] in ('PIL', 'pillow_lic', 'torch', 'numpy', 'imageio')])"
    assert python(code, tmp_path) == "[]"
    assert python("import PIL.Image; print('torch' in sys.modules)", tmp_path) == "False"


def test_a_broken_environment_still_starts(tmp_path: Path) -> None:
    autoload.turn_on(tmp_path)
    assert python("print('up')", tmp_path, path=tmp_path) == "up"  # no pillow_lic at all
    (tmp_path / "pillow_lic_autoload.py").write_text("raise RuntimeError('broken')")
    assert python("print('up')", tmp_path, path=tmp_path) == "up"
    (tmp_path / "pillow_lic_autoload.py").write_text((ROOT / "pillow_lic_autoload.py").read_text())
    (tmp_path / "pillow_lic.py").write_text("raise RuntimeError('broken')")
    assert python("import PIL.Image; print(PIL.Image.__name__)", tmp_path, path=tmp_path) == "PIL.Image"


def test_modules_look_as_ever(tmp_path: Path) -> None:
    autoload.turn_on(tmp_path)
    code = "import PIL.Image as m; print(type(m.__loader__).__name__, type(m.__spec__.loader).__name__)"
    assert python(code, tmp_path) == "SourceFileLoader SourceFileLoader"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(autoload.sysconfig, "get_path", lambda _: str(tmp_path))
    for state, told in (("status", "off"), ("on", "on"), ("status", "on"), ("off", "off"), ("off", "off")):
        assert main(["autoload", state]) == 0
        assert capsys.readouterr().out == f"autoload is {told} ({tmp_path / autoload.NAME})\n"

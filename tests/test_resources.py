"""Nothing is left behind: no handles, no memory, no half-written files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from conftest import coded
from PIL import Image

from pillow_lic import codec
from pillow_lic.cli import main

HERE = Path(__file__).parent
MODEL = str(HERE / "golden" / "lattice.safetensors")

linux_only = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts handles in /proc")

CYCLES = """
import itertools, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from PIL import Image
from leaks import grown
import pillow_lic

pillow_lic.register_lic_opener()
picture = Image.radial_gradient("L").resize((40, 30)).convert("RGB")

def cycle(count=itertools.count()):
    picture.save("x.lic", model={model!r}, context="staircase", quality=5)
    with Image.open("x.lic") as image:
        image.load()
    if next(count) % 10:
        return
    Image.open("x.lic").close()
    image = Image.open("x.lic")
    image.verify()
    image = Image.open("x.lic")
    image.crop((0, 0, 9, 9))
    image.close()
    data = bytearray(Path("x.lic").read_bytes())
    data[-9] ^= 1
    Path("x.lic").write_bytes(data)
    for use in (lambda image: image.load(), lambda image: image.verify()):
        with Image.open("x.lic") as image:
            try:
                use(image)
            except OSError:
                continue
            raise SystemExit("damage was not seen")

print(*grown(cycle, 1000))
"""


@linux_only
def test_a_thousand_cycles_leave_nothing_behind(tmp_path: Path) -> None:
    """In a process of its own, since other tests' memory would blur the count."""
    script = CYCLES.format(tests=str(HERE), model=MODEL)
    env = os.environ | {"PILLOW_LIC_MODELS": str(HERE / "golden"), "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    handles, memory = map(int, done.stdout.split())
    assert handles == 0
    assert memory < 8 * 2**20
    assert [p.name for p in tmp_path.iterdir()] == ["x.lic"]


def leak_a_handle(kept: list[object]) -> None:
    kept.append(os.open(os.devnull, os.O_RDONLY))


def leak_memory(kept: list[object]) -> None:
    kept.append(os.urandom(100_000))


PLANTED = """
import sys
sys.path.insert(0, {tests!r})
import test_resources
from leaks import grown

kept = []
print(*grown(lambda: test_resources.{leak}(kept), 1000))
"""


@linux_only
@pytest.mark.parametrize(("leak", "handles", "memory"), [("leak_a_handle", 800, 0), ("leak_memory", 0, 15_000_000)])
def test_planted_leaks_are_found(leak: str, handles: int, memory: int) -> None:
    """In a process of its own, too: where others have left much memory free, 100 MB fit into it."""
    script = PLANTED.format(tests=str(HERE), leak=leak)
    env = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = list(map(int, done.stdout.split()))
    assert found[0] >= handles
    assert found[1] >= memory


# -- interrupted saves ---------------------------------------------------------------------

FULL = OSError(errno.ENOSPC, "No space left on device")
INTERRUPTIONS = [KeyboardInterrupt(), FULL, MemoryError(), ValueError("a bug")]


@pytest.fixture
def old(tmp_path: Path, small: Image.Image) -> Path:
    target = tmp_path / "out.lic"
    target.write_bytes(coded(small, quality=1))
    small.save(tmp_path / "in.png")
    return target


def convert(target: Path) -> int:
    return main(["convert", str(target.with_name("in.png")), str(target), "--quality", "5"])


def left_as_it_was(target: Path, before: bytes) -> bool:
    names = {p.name for p in target.parent.iterdir()}
    return target.read_bytes() == before and names == {"in.png", "out.lic"}


@pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=repr)
def test_an_interrupted_conversion_leaves_the_old_file(
    old: Path, interruption: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = old.read_bytes()

    def fail(*_: object, **__: object) -> bytes:
        raise interruption

    monkeypatch.setattr(codec, "encode", fail)
    try:
        assert convert(old) != 0
    except BaseException as error:
        assert error is interruption
    assert left_as_it_was(old, before)


@pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=repr)
def test_a_conversion_that_ends_while_it_writes_leaves_the_old_file(
    old: Path, interruption: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = old.read_bytes()
    monkeypatch.setattr(os, "replace", _raising(interruption))
    monkeypatch.setattr(Path, "replace", _raising(interruption))
    try:
        assert convert(old) != 0
    except BaseException as error:
        assert error is interruption
    assert left_as_it_was(old, before)


def _raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_full_disk_leaves_the_old_file(old: Path) -> None:
    """A limit on the size of files ends the write in its middle, as a full disk does."""
    before = old.read_bytes()
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from pillow_lic.cli import main; import torch, pillow_lic.codec;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)); sys.exit(main(sys.argv[1:]))"
    )
    source = str(old.with_name("in.png"))
    done = subprocess.run(
        [sys.executable, "-c", script, "convert", source, str(old), "--quality", "7"],
        env=os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert left_as_it_was(old, before)


@pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=repr)
def test_a_save_that_fails_makes_no_new_file(
    small: Image.Image, tmp_path: Path, interruption: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is coded before the first byte is written; Pillow removes the file that it has made."""
    monkeypatch.setattr(codec, "encode", _raising(interruption))
    target = BytesIO()
    with pytest.raises(type(interruption)):
        small.save(target, "LIC")
    assert target.getvalue() == b""
    if isinstance(interruption, Exception):  # Pillow leaves an empty one after KeyboardInterrupt
        with pytest.raises(type(interruption)):
            small.save(tmp_path / "new.lic")
        assert not list(tmp_path.iterdir())

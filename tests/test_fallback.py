"""What is missing is said, and where a CPU can do the work, it does."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import coded, pixels_of
from PIL import Image

import pillow_lic
from pillow_lic import codec, devices
from pillow_lic.codec import decoding, encoding
from pillow_lic.models import loading
from pillow_lic.models.errors import ModelError, reading


@pytest.fixture(autouse=True)
def _not_told_yet() -> Iterator[None]:
    devices.tell_once.cache_clear()
    yield
    devices.tell_once.cache_clear()


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_a_default_asks_for_may_be_missing(small: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = coded(small)
    monkeypatch.setenv("PILLOW_LIC_DEVICE", "cuda")
    with pytest.warns(UserWarning, match=r"'cuda' does not exist here: .*built without CUDA.*; working on the CPU"):
        assert coded(small) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert coded(small) == expected  # told once
        pixels_of(expected)


@pytest.mark.usefixtures("no_gpu")
def test_defaults_of_the_process_are_such_a_default(small: Image.Image) -> None:
    pillow_lic.set_defaults(device="cuda:1")
    with pytest.warns(UserWarning, match="'cuda:1' does not exist here"):
        assert coded(small)


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_a_call_asks_for_must_be_there(small: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"'cuda' does not exist here: .*install a build with it"):
        coded(small, device="cuda")
    with pytest.raises(ValueError, match="'cuda' does not exist here"):
        codec.transcode(coded(small), "none", device="cuda")


def test_forked_workers_leave_their_parents_gpu_alone(monkeypatch: pytest.MonkeyPatch, small: Image.Image) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    expected = coded(small, device="cpu")
    pillow_lic.set_defaults(device="cuda")
    with pytest.warns(UserWarning, match="a forked process cannot use the GPU of its parent.*; working on the CPU"):
        assert coded(small) == expected
    with pytest.raises(ValueError, match="spawn workers instead"):
        coded(small, device="cuda:0")


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, small: Image.Image) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ValueError, match="torch sees 0 GPUs, check the driver with nvidia-smi"):
        coded(small, device="cuda")


FULL = (
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


def full(function: Callable[..., object], place: int, error: Exception) -> Callable[..., object]:
    """The function on a GPU that has no memory left; its argument at ``place`` holds or is the device."""

    def run(*args: object) -> object:
        on = getattr(args[place], "device", args[place])
        if on.type == "cuda":  # type: ignore[attr-defined]
            raise error
        return function(*args)

    return run


@pytest.fixture(params=FULL)
def full_gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    chosen: list[torch.device] = [torch.device("cuda")]
    for module in (decoding, encoding):
        monkeypatch.setattr(module, "choose_device", lambda name, pixels: chosen[0])
    monkeypatch.setattr(decoding, "_synthesise", full(decoding._synthesise, 0, request.param))
    monkeypatch.setattr(encoding, "_encode", full(encoding._encode, 6, request.param))
    monkeypatch.setattr(decoding, "from_bytes", full(decoding.from_bytes, 4, request.param))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return str(request.param).partition(".")[0]


@pytest.fixture
def ready(small: Image.Image) -> tuple[bytes, np.ndarray]:
    """A file and its pixels, from before the GPU is full."""
    data = coded(small)
    return data, pixels_of(data)


def test_a_full_gpu_leaves_the_work_to_the_cpu(
    small: Image.Image, ready: tuple[bytes, np.ndarray], full_gpu: str
) -> None:
    data, expected = ready
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert coded(small) == data
        assert np.array_equal(pixels_of(data), expected)
        pixels_of(data)
        assert codec.transcode(codec.transcode(data, "none"), "staircase") == data
    assert [str(w.message) for w in said] == [
        f"cuda is out of memory ({full_gpu}); working on the CPU. Smaller tiles (tile=) need less"
    ]


def test_what_a_gpu_says_is_no_damage_of_the_model(tmp_path: Path) -> None:
    told = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal memory access") as caught, reading(tmp_path / "x.safetensors"):
        raise RuntimeError(told)
    assert str(caught.value) == told
    with pytest.raises(ModelError, match="damaged or not a pillow-lic model"), reading(tmp_path / "x.safetensors"):
        raise RuntimeError("sizes differ")


def test_memory_that_the_cpu_does_not_have_is_an_error(small: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    data = coded(small)

    def fail(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("no memory")

    monkeypatch.setattr(decoding, "_synthesise", fail)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        pixels_of(data)


def test_missing_weights_are_named_with_the_place_for_them(small: Image.Image, tmp_path: Path) -> None:
    data = bytearray(coded(small))
    reader_id = data.index(b"HEAD") + 5 + 2 + 2
    data[reader_id : reader_id + 8] = b"whatever"
    from fuzz.cases import assemble, parse

    chunks = parse(bytes(data))
    with (
        Image.open(BytesIO(assemble(chunks))) as image,
        pytest.raises(OSError, match="which is not installed") as error,
    ):
        image.load()
    assert "put its .safetensors file into" in str(error.value)
    with pytest.raises(ValueError, match=r"no model 'nope' is installed; there are: .*mse"):
        coded(small, model="nope")


def test_a_model_that_is_not_what_its_manifest_describes_is_refused(
    small: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (Path(__file__).parent / "golden" / "lattice.safetensors").read_bytes()
    (tmp_path / "mine.safetensors").write_bytes(weights)
    (tmp_path / "mine.json").write_text('{"identity": "0123456789abcdef"}')
    monkeypatch.setenv("PILLOW_LIC_MODELS", str(tmp_path))
    monkeypatch.setattr(loading, "_loaded", {})
    with pytest.raises(ValueError, match="damaged or was replaced: its manifest describes 0123456789abcdef"):
        coded(small, model="mine")
    identity = hashlib.sha256(weights).hexdigest()[:16]
    (tmp_path / "mine.json").write_text(f'{{"identity": "{identity}"}}')
    assert coded(small, model="mine")


def test_full_memory_is_an_error_of_its_own() -> None:
    on = torch.device("cpu")
    with pytest.raises(MemoryError, match="can't allocate memory"), devices.quiet(on):
        torch.empty(2**60, dtype=torch.uint8, device=on)

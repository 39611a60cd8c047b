"""Pillow's contract: how a .lic file is opened, loaded and saved.

Imported by every process that might meet a .lic file: what opening and coding need, torch above
all, is imported when they happen.
"""

from __future__ import annotations

import os
import struct
import threading
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile, ImageSequence
from PIL._util import DeferredError

from pillow_lic.signature import accept

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pillow_lic import container

FORMAT = "LIC"
MIME = "image/x-lic"
EXTENSION = ".lic"

SCALES = (8, 4, 2)
"""What sides of a picture may be divided by when it is decoded."""

METADATA = frozenset({"exif", "icc_profile", "xmp", "comment", "dpi"})
SAVE_EXTRAS = METADATA | {"append_images", "duration", "loop", "progress", "roi", "model_id", "model_name"}

FOREIGN_PROFILES = {"L": (b"CMYK", b"Lab "), "RGB": (b"CMYK", b"Lab ", b"GRAY")}
"""Colour spaces of ICC profiles that no picture in a mode can have; they are in bytes 16 to 20 (ICC.1, 7.2.6)."""


class LicImageFile(ImageFile.ImageFile):
    """A .lic file.  Opening reads header and metadata; ``load()`` decodes a frame, once, in any thread.

    ``device`` and ``threads`` say where and how frames are decoded, as :func:`open` explains.
    """

    format = FORMAT
    format_description = "Learned image codec"
    device: str | None = None
    threads: int | None = None
    _scale = 1
    _shown: float = 1

    def _open(self) -> None:
        from pillow_lic import container

        assert self.fp is not None
        reader = container.Reader(self.fp, lenient=ImageFile.LOAD_TRUNCATED_IMAGES)
        metadata, header = reader.metadata(), reader.header
        self._size = (header.width, header.height)
        self._mode = header.mode
        self.n_frames = header.frames
        self.is_animated = header.frames > 1
        self.info.update(info_of(header))
        self.info.update(shown_metadata(metadata))
        self._reader: container.Reader | None = reader
        self._lock = threading.Lock()
        self._frame, self._loaded = 0, -1
        self.tile = []
        if reader.animation is not None:
            self._fp = self.fp  # what the reader goes on reading when another frame is asked for
            self.info["loop"] = reader.animation.loop
            self.info["duration"] = reader.animation.durations[0]

    def seek(self, frame: int) -> None:
        """Make another frame the current one; ``EOFError`` if there is none of that number."""
        if self._seek_check(frame):
            if isinstance(self._fp, DeferredError):
                raise self._fp.ex
            assert self._reader is not None
            assert self._reader.animation is not None
            # Whatever thumbnail() or putalpha() made of the frame before.
            header, self._frame, self._loaded = self._reader.header, frame, -1
            self._size, self._mode = self._drafted(header), header.mode
            self.info["duration"] = self._reader.animation.durations[frame]

    def tell(self) -> int:
        """The number of the current frame."""
        return self._frame

    def load(self) -> Any:
        """Decode the current frame's pixels, the first time.

        Raises ``OSError`` if the file is damaged, closed, or its model is not installed.  With
        ``ImageFile.LOAD_TRUNCATED_IMAGES`` the intact tiles of a damaged file are shown, the rest grey, with
        a warning.
        """
        with self._lock:
            if self._reader is not None and self._loaded != self._frame:
                self._decode(self._reader)
                self._loaded = self._frame
                if not self.is_animated:
                    self._reader = None
        return super().load()

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int, float, float]] | None:
        """Decode at 1/2, 1/4 or 1/8, whichever is the smallest that is at least of a size; ``thumbnail()`` asks for it.

        Returns the mode, which stays, and the image's box in pixels of the draft; None, and nothing is done, if the
        pixels are loaded.
        """
        if size is None or self._reader is None or self._loaded == self._frame:
            return None
        header = self._reader.header
        ratio = min(header.width // max(1, size[0]), header.height // max(1, size[1]))
        self._scale = next((s for s in SCALES if s <= ratio), 1)
        self._size = self._drafted(header)
        return self.mode, (0, 0, header.width / self._scale, header.height / self._scale)

    def _drafted(self, header: container.Header) -> tuple[int, int]:
        """Width and height at the scale that frames are decoded at."""
        return -(-header.width // self._scale), -(-header.height // self._scale)

    def thumbnail(
        self,
        size: tuple[float, float],
        resample: Image.Resampling = Image.Resampling.BICUBIC,
        reducing_gap: float | None = 2.0,
    ) -> None:
        """As ``Image.thumbnail``; of what is not loaded yet, no more is decoded than shows at that size."""
        before = self._scale
        self._shown = before * max(self.width / max(1, size[0]), self.height / max(1, size[1]))
        try:
            super().thumbnail(size, resample, reducing_gap)
            if self._scale != before:
                self.load()
        finally:
            self._shown, self._scale = 1, before  # other frames are not drafts

    def crop(self, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        """A part of the image; before the pixels are loaded, only the tiles it needs are decoded."""
        if box is not None:
            left, top, right, bottom = (round(n) for n in box)
            if self._holds(left, top, right, bottom):
                return self.read_region((left, top, right, bottom))
        return super().crop(box)

    def _leaves_out(self, box: tuple[int, int, int, int]) -> bool:
        """Whether a box of the current frame can be decoded without some of its tiles, none of which is yet."""
        if self._reader is None or self._loaded == self._frame or self._scale != 1 or not self._reader.header.tile:
            return False
        header, side = self._reader.header, self._reader.header.tile
        left, top, right, bottom = box
        reach = [-(-end // side) * side for end in (right, bottom)]
        return left >= side or top >= side or reach[0] < header.width or reach[1] < header.height

    def _holds(self, left: int, top: int, right: int, bottom: int) -> bool:
        """Whether a box has pixels and all of them lie inside the image."""
        return 0 <= left < right <= self.width and 0 <= top < bottom <= self.height

    def read_region(self, box: tuple[int, int, int, int]) -> Image.Image:
        """The pixels of a box (left, top, right, bottom) inside the image, without the tiles that it does not need.

        Raises ``ValueError`` for a box that is empty or reaches outside, ``OSError`` as ``load()`` does.
        """
        from pillow_lic import codec

        if not self._holds(*box):
            raise ValueError(f"the region {box} does not lie inside the image of {self.width}x{self.height} pixels")
        pixels = None
        with self._lock:
            if self._reader is not None and self._leaves_out(box):
                self._check_open()
                self._reader.lenient = ImageFile.LOAD_TRUNCATED_IMAGES
                frame = self._reader.frame(self._frame)
                pixels = codec.decode(self._reader.header, frame, self.device, box, threads=self.threads)
        if pixels is None:
            return super().crop(box)
        region = Image.frombytes(self.mode, (box[2] - box[0], box[3] - box[1]), pixels.tobytes())
        region.info = self.info.copy()
        return region

    def _decode(self, reader: container.Reader) -> None:
        from pillow_lic import codec

        source = self._check_open()
        reader.lenient = ImageFile.LOAD_TRUNCATED_IMAGES
        frame = reader.frame(self._frame)
        pixels = codec.decode(
            reader.header, frame, self.device, scale=self._scale, shown=self._shown, threads=self.threads
        )
        # Pillow's own raw decoder fills the image, the way its WebP and AVIF plugins do it.
        if self._exclusive_fp and source is self.fp:
            if self.is_animated:
                self._fp = reader.hold()  # the other frames, whatever becomes of the file
            source.close()
        self._size, self._mode = (pixels.shape[1], pixels.shape[0]), reader.header.mode
        self._im = None
        self.fp = BytesIO(pixels.tobytes())
        self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, self.mode)]
        super().load()

    def _check_open(self) -> IO[bytes]:
        """The file to read from; ``OSError`` if it is closed."""
        source = self._fp if self.is_animated else self.fp
        if source is None or isinstance(source, DeferredError) or getattr(source, "closed", False):
            raise OSError("the LIC file was closed before its pixels were loaded")
        return source

    def save(
        self,
        fp: str | bytes | os.PathLike[str] | os.PathLike[bytes] | IO[bytes],
        format: str | None = None,
        **params: Any,
    ) -> None:
        """As ``Image.save`` does, but a .lic file is written over only once the new one is made.

        So a save that fails leaves it as it was, and the file may be the one that this image is read from.
        """
        if isinstance(fp, (str, bytes, os.PathLike)) and is_lic(os.fspath(fp), format):
            coded = BytesIO()
            super().save(coded, FORMAT, **params)
            Path(os.fsdecode(fp)).write_bytes(coded.getvalue())
        else:
            super().save(fp, format, **params)

    def load_seek(self, pos: int) -> None:
        """Nothing to seek: the pixels are in memory by then."""

    def verify(self) -> None:
        """Compare the file's checksums; ``OSError`` if one is wrong.  The image cannot be used after."""
        if self.fp is None or self._reader is None:
            raise RuntimeError("verify must be called directly after open")
        self._reader.verify()
        if self._exclusive_fp:
            self.fp.close()
        self.fp = None
        self._reader = None

    def __setstate__(self, state: list[Any]) -> None:
        self._lock, self._reader = threading.Lock(), None
        self._frame, self._loaded = 0, 0
        super().__setstate__(state)


def open(
    fp: str | bytes | os.PathLike[str] | IO[bytes],
    *,
    device: str | None = None,
    threads: int | None = None,
    size: tuple[int, int] | None = None,
) -> LicImageFile:
    """Open a .lic file as ``Image.open`` does, with options for decoding it.

    device   "cpu", "cuda", "cuda:1", or None: CUDA where there is one and the picture is large enough
             to be worth it, else the CPU; PILLOW_LIC_DEVICE overrides None
    threads  CPU threads to work with, at least 1; None: as many as torch is set to
    size     (width, height): decode at 1/2, 1/4 or 1/8, whichever is the smallest that is at least so
             large, in less time; None: the whole

    Raises what ``Image.open`` does (``UnidentifiedImageError`` for another kind of file), and ``TypeError`` or
    ``ValueError`` for impossible options; a device that does not exist is a ``ValueError`` when pixels are asked for.
    """
    from pillow_lic import options

    threads = options.checked_threads(threads)
    image = Image.open(fp, formats=[FORMAT])
    assert isinstance(image, LicImageFile)
    image.device, image.threads = device, threads
    image.draft(None, size)
    return image


def is_lic(path: str | bytes, format: str | None) -> bool:
    """Whether Pillow would save a file of that name, in that format if one is given, as LIC."""
    return format.upper() == FORMAT if format else os.path.splitext(os.fsdecode(path))[1].lower() == EXTENSION


def info_of(header: container.Header) -> dict[str, Any]:
    """What ``im.info`` tells about the coding."""
    from pillow_lic import options

    return {
        "quality": options.quality_of(header.quality_code),
        "context": header.context,
        "quantizer": header.quantizer,
        "progressive": header.progressive,
        "model_id": header.model_id.hex(),
    } | ({"model_name": header.model_name} if header.model_name else {})


def save(im: Image.Image, fp: IO[bytes], filename: str | bytes, save_all: bool = False) -> None:
    """Save handler: checks everything and codes the whole picture before it writes."""
    from pillow_lic import options

    info = dict(im.encoderinfo)
    opts = options.options_from(info, also_known=SAVE_EXTRAS)
    if 0 in im.size:
        raise ValueError("cannot write an empty image as LIC")
    if save_all:
        frames, durations = frames_of([im, *(info.get("append_images") or ())], info.get("duration"))
    else:
        frames, durations = [in_supported_mode(im)], [0]
    # icc_profile=None drops the image's own profile, no icc_profile keeps it if its colours were not converted.
    metadata = metadata_from(inherited_from(im, frames[0].mode) | info)

    import numpy as np

    from pillow_lic import codec, container

    animation = container.Animation(info.get("loop", im.info.get("loop", 0)), tuple(durations))
    several = animation if len(frames) > 1 else None
    roi = mask_from(info.get("roi"), im)
    mask = None if roi is None else np.asarray(roi)
    with codec.reporting_to(info.get("progress")):
        data = codec.encode([np.asarray(frame) for frame in frames], opts, metadata, several, mask)
    fp.write(data)
    if hasattr(fp, "flush"):
        fp.flush()


def save_all(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    """Save handler for ``save_all=True``: all frames of the image and of ``append_images``."""
    save(im, fp, filename, save_all=True)


def mask_from(roi: Any, im: Image.Image) -> Image.Image | None:
    """A mask of the image's size in mode L from an image, an array, or a function of the image that gives one.

    Raises ``TypeError`` for anything else and ``ValueError`` for another size.
    """
    found = roi(im) if callable(roi) else roi
    if found is None:
        return None
    if not isinstance(found, Image.Image):
        try:
            found = Image.fromarray(found)
        except (TypeError, AttributeError, KeyError):
            raise TypeError(f"roi must be an image or an 8-bit array, not {type(found).__name__}") from None
    if found.size != im.size:
        raise ValueError(f"roi has {found.width}x{found.height} pixels, the image {im.width}x{im.height}")
    return found if found.mode == "L" else found.convert("L")


def frames_of(
    images: Sequence[Image.Image], duration: int | Sequence[int] | None
) -> tuple[list[Image.Image], list[int]]:
    """Every frame of some images in one mode, and how long to show each, in milliseconds.

    ``duration``: of all, of each, or None for what the images say.  Raises ``ValueError`` if frames
    differ in size or durations are too few.
    """
    frames, durations = [], []
    for image in images:
        before = image.tell()
        try:
            for frame in ImageSequence.Iterator(image):
                frame.load()
                durations.append(int(frame.info.get("duration", 0)))
                supported = in_supported_mode(frame)
                frames.append(supported.copy() if supported is frame else supported)
        finally:
            image.seek(before)
    if any(frame.size != frames[0].size for frame in frames):
        raise ValueError("all frames of a LIC file must have the same size")
    if duration is not None:
        durations = durations_of(duration, len(frames))
    modes = {frame.mode for frame in frames}
    colour = "RGB" if any(m.startswith("RGB") for m in modes) else "L"
    mode = colour + ("A" if any(m.endswith("A") for m in modes) else "")
    return [frame if frame.mode == mode else frame.convert(mode) for frame in frames], durations


def durations_of(duration: float | Sequence[float], frames: int) -> list[int]:
    """How long to show each of so many frames, from one number for all or one for each.

    Raises ``ValueError`` if there are too few or too many.
    """
    every: Any = duration
    given: list[Any] = [every] * frames if isinstance(every, Real) else list(every)
    if len(given) != frames:
        raise ValueError(f"duration names {len(given)} frames, but there are {frames}")
    return [int(d) for d in given]


def in_supported_mode(im: Image.Image) -> Image.Image:
    """The image in mode L, LA, RGB or RGBA, whichever holds all it has in 8 bits a channel.

    Raises ``OSError`` for modes with more bits and for LAB.
    """
    if im.mode in ("I", "F") or im.mode.startswith("I;16"):
        raise OSError(f'cannot write mode {im.mode} as LIC; scale its values to 0...255 and use im.convert("L")')
    if im.mode == "LAB":
        raise OSError('cannot write mode LAB as LIC; use ImageCms.profileToProfile to make it "RGB"')
    grey = im.mode in ("1", "L", "LA", "La")
    wanted = ("L" if grey else "RGB") + ("A" if im.has_transparency_data or im.mode in ("La", "RGBa") else "")
    return im if im.mode == wanted else im.convert(wanted)


def inherited_from(im: Image.Image, mode: str) -> dict[str, Any]:
    """What an image's own info gives to a file that is written in some mode."""
    found = {name: im.info[name] for name in ("icc_profile", "comment") if im.info.get(name)}
    if found.get("icc_profile", b"")[16:20] in FOREIGN_PROFILES[mode.removesuffix("A")]:
        del found["icc_profile"]
    return found


def metadata_from(options: Mapping[str, Any]) -> dict[str, bytes]:
    """EXIF (bytes or ``Image.Exif``), ICC profile, XMP, comment (bytes or text) and dpi (two numbers) among
    save options, as bytes.

    Raises ``TypeError`` for values of another kind.
    """
    from pillow_lic import container

    found = {name: options.get(name) for name in container.METADATA}
    if isinstance(found["exif"], Image.Exif):
        found["exif"] = found["exif"].tobytes()
    for name in ("xmp", "comment"):
        if isinstance(text := found[name], str):
            found[name] = text.encode("utf-8")
    if found["dpi"] is not None:
        try:
            found["dpi"] = struct.pack("<2d", *found["dpi"])
        except (struct.error, TypeError):
            raise TypeError(f"dpi must be two numbers, not {found['dpi']!r}") from None
    for name, value in found.items():
        if value is not None and not isinstance(value, (bytes, bytearray, memoryview)):
            raise TypeError(f"{name} must be bytes, not {type(value).__name__}")
    return {name: bytes(value) for name, value in found.items() if value}


def shown_metadata(metadata: Mapping[str, bytes]) -> dict[str, Any]:
    """A file's metadata as ``im.info`` has them: dpi as two numbers, the rest in bytes."""
    found: dict[str, Any] = dict(metadata)
    if len(dpi := found.pop("dpi", b"")) == 16:
        found["dpi"] = struct.unpack("<2d", dpi)
    return found


def register() -> None:
    """Tell Pillow about the format; doing it twice changes nothing."""
    if FORMAT in Image.OPEN:
        return
    Image.register_open(FORMAT, LicImageFile, accept)
    Image.register_save(FORMAT, save)
    Image.register_save_all(FORMAT, save_all)
    Image.register_extension(FORMAT, EXTENSION)
    Image.register_mime(FORMAT, MIME)

"""Pillow's contract: how a .lic file is opened, loaded and saved.

Imported by every process that might meet a .lic file: what opening and coding need, torch above
all, is imported when they happen.
"""

from __future__ import annotations

import errno
import os
import threading
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile
from PIL._util import DeferredError

from pillow_lic import atomic, inputs
from pillow_lic.signature import accept

if TYPE_CHECKING:
    from pillow_lic import container
    from pillow_lic.header import Header

FORMAT = "LIC"
MIME = "image/x-lic"
EXTENSION = ".lic"

SCALES = (8, 4, 2)
"""What sides of a picture may be divided by when it is decoded."""

METADATA = frozenset({"exif", "icc_profile", "xmp", "comment", "dpi"})
SAVE_EXTRAS = METADATA | {"append_images", "duration", "loop", "progress", "roi", "model_id", "model_name"}


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
        header = reader.header
        self._size = (header.width, header.height)
        if Image.MAX_IMAGE_PIXELS is not None and header.width * header.height > 2 * Image.MAX_IMAGE_PIXELS:
            Image._decompression_bomb_check(self._size)  # an error now; a warning is Image.open's
        metadata, header = reader.metadata(), reader.header
        self._mode = header.mode
        self.n_frames = header.frames
        self.is_animated = header.frames > 1
        self.info.update(info_of(header))
        self.info.update(inputs.shown_metadata(metadata))
        self._reader: container.Reader | None = reader
        self._lock = threading.Lock()
        self._frame, self._loaded = 0, -1
        self._cropped = 0
        self.tile = []
        if reader.animation is not None:
            self._fp = self.fp  # what the reader goes on reading when another frame is asked for
            self.info["loop"] = reader.animation.loop
            self.info["duration"] = reader.animation.durations[0]

    def seek(self, frame: int) -> None:
        """Make another frame the current one; ``EOFError`` if there is none of that number."""
        with self._lock:
            if not self._seek_check(frame):
                return
            if isinstance(self._fp, DeferredError):
                raise self._fp.ex
            assert self._reader is not None
            assert self._reader.animation is not None
            self.info["duration"] = self._reader.animation.durations[frame]
            # Whatever thumbnail() or putalpha() made of the frame before.
            header, self._frame, self._loaded = self._reader.header, frame, -1
            self._cropped = 0
            self._size, self._mode = self._drafted(header), header.mode

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
        with self._lock:
            if size is None or self._reader is None or self._loaded == self._frame:
                return None
            header = self._reader.header
            ratio = min(header.width // max(1, size[0]), header.height // max(1, size[1]))
            self._scale = next((s for s in SCALES if s <= ratio), 1)
            self._size = self._drafted(header)
        return self.mode, (0, 0, header.width / self._scale, header.height / self._scale)

    def _drafted(self, header: Header) -> tuple[int, int]:
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
            if (reader := self._reader) is not None and self._loaded != self._frame:
                self._size = self._drafted(reader.header)  # nothing was decoded after all

    def crop(self, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        """A part of the image; before the pixels are loaded, only the tiles it needs are decoded.

        Whoever cuts many patches loads the image by it: once as many tiles were decoded as there are.
        """
        if box is not None:
            left, top, right, bottom = (round(n) for n in box)
            whole = left, top, right, bottom
            reader = self._reader  # which load() takes away, maybe in another thread
            if reader and self._holds(whole) and self._leaves_out(whole):
                header, side = reader.header, reader.header.tile
                if self._cropped <= header.tiles:
                    # With their neighbours, whose latents reach into them.
                    self._cropped += (right // side - left // side + 3) * (bottom // side - top // side + 3)
                    return self.read_region(whole)
        return super().crop(box)

    def _leaves_out(self, box: tuple[int, int, int, int]) -> bool:
        """Whether a box of the current frame can be decoded without some of its tiles, none of which is yet."""
        reader = self._reader
        if reader is None or self._loaded == self._frame or self._scale != 1 or not reader.header.tile:
            return False
        header, side = reader.header, reader.header.tile
        left, top, right, bottom = box
        reach = [-(-end // side) * side for end in (right, bottom)]
        return left >= side or top >= side or reach[0] < header.width or reach[1] < header.height

    def _holds(self, box: tuple[int, int, int, int]) -> bool:
        """Whether a box has pixels and all of them lie inside the image."""
        left, top, right, bottom = box
        return 0 <= left < right <= self.width and 0 <= top < bottom <= self.height

    def read_region(self, box: tuple[int, int, int, int]) -> Image.Image:
        """The pixels of a box (left, top, right, bottom) inside the image, without the tiles that it does not need.

        Raises ``ValueError`` for a box that is empty or reaches outside, ``OSError`` as ``load()`` does.
        """
        from pillow_lic import codec

        if not self._holds(box):
            raise ValueError(f"the region {box} does not lie inside the image of {self.width}x{self.height} pixels")
        pixels = None
        with self._lock:
            if self._reader is not None and self._leaves_out(box):
                self._check_open()
                self._reader.lenient = ImageFile.LOAD_TRUNCATED_IMAGES
                frame = self._reader.frame(self._frame)
                if not frame.damaged:  # to tell what is right of it takes the whole of it, and that once
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
        if source is self.fp:
            if self.is_animated:
                self._fp = reader.hold()  # the other frames, whatever becomes of the file
            if self._exclusive_fp:
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

        It then takes the old one's place at once, so that a save that fails leaves that as it was, and the file may
        be the one that this image is read from.
        """
        if isinstance(fp, (str, bytes, os.PathLike)) and is_lic(os.fspath(fp), format):
            path, coded = Path(os.fsdecode(fp)), BytesIO()
            if not path.parent.is_dir():  # before hours of search
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            super().save(coded, FORMAT, **params)
            atomic.write(str(path), coded.getvalue())
        else:
            super().save(fp, format, **params)

    def load_seek(self, pos: int) -> None:
        """Nothing to seek: the pixels are in memory by then.  That there is this method keeps Pillow from mapping the
        file into memory as if it held raw pixels.
        """

    def verify(self) -> None:
        """Compare the file's checksums; ``OSError`` if one is wrong.  The image cannot be used after."""
        if self.fp is None or self._reader is None:
            raise RuntimeError("verify must be called directly after open")
        self._reader.verify()
        if self._exclusive_fp:
            self.fp.close()
        self.fp = None
        self._reader = None
        if self.is_animated:
            self._fp = DeferredError(ValueError("the image was verified: open it again"))

    def __setstate__(self, state: list[Any]) -> None:
        self._lock, self._reader = threading.Lock(), None
        self._frame, self._loaded, self._min_frame = 0, 0, 0
        self.fp, self.n_frames, self.is_animated = None, 1, False  # the current frame is all there is
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
             to be worth it, else the CPU, unless ``set_defaults`` or PILLOW_LIC_DEVICE say otherwise
    threads  CPU threads to work with, at least 1; None: as ``set_defaults`` says, or as many as torch is set to
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
    try:
        image.draft(None, size)
    except BaseException:
        image.close()
        raise
    return image


def is_lic(path: str | bytes, format: str | None) -> bool:
    """Whether Pillow would save a file of that name, in that format if one is given, as LIC."""
    return format.upper() == FORMAT if format else os.path.splitext(os.fsdecode(path))[1].lower() == EXTENSION


def info_of(header: Header) -> dict[str, Any]:
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
        frames, times = inputs.frames_of([im, *(info.get("append_images") or ())], info.get("duration"))
    else:
        frames, times = [inputs.in_supported_mode(im)], [0.0]
    # icc_profile=None drops the image's own profile, no icc_profile keeps it if its colours were not converted.
    mode = frames[0].mode
    metadata = inputs.metadata_from(inputs.inherited_from(im, mode) | inputs.without_foreign(info, im, mode))

    import numpy as np

    from pillow_lic import codec
    from pillow_lic.header import Animation

    # loop=None is how callers of GIF's plugin say that they do not mind.
    loop = info.get("loop", inputs.loop_of(im)) or 0
    several = Animation(loop, inputs.whole_times(times)) if len(frames) > 1 else None
    roi = inputs.mask_from(info.get("roi"), im)
    mask = None if roi is None else np.asarray(roi)
    with codec.reporting_to(info.get("progress")):
        data = codec.encode([np.asarray(frame) for frame in frames], opts, metadata, several, mask)
    fp.write(data)
    if hasattr(fp, "flush"):
        fp.flush()


def save_all(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    """Save handler for ``save_all=True``: all frames of the image and of ``append_images``."""
    save(im, fp, filename, save_all=True)


def register() -> None:
    """Tell Pillow about the format; doing it twice changes nothing."""
    if FORMAT in Image.OPEN:
        return
    Image.register_open(FORMAT, LicImageFile, accept)
    Image.register_save(FORMAT, save)
    Image.register_save_all(FORMAT, save_all)
    Image.register_extension(FORMAT, EXTENSION)
    Image.register_mime(FORMAT, MIME)

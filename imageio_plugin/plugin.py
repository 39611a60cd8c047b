"""imageio's contract: a PluginV3 over the codec, as imageio's own plugins behave."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from types import EllipsisType
from typing import Any

import numpy as np
from imageio.core.request import URI_BYTES, InitializationError, IOMode, Request
from imageio.core.v3_plugin_api import ImageProperties, PluginV3
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps

from pillow_lic import container, options
from pillow_lic.plugin import METADATA, durations_of, info_of, mask_from, metadata_from, shown_metadata

Pixels = NDArray[np.uint8]


class LicPlugin(PluginV3):
    """Reads and writes .lic files.

    Raises ``InitializationError`` for another kind of file, so that imageio tries other plugins,
    and ``OSError`` for a damaged one.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self._reader: container.Reader | None = None
        self._cached: tuple[int, Pixels] | None = None
        self._written = False
        if request.mode.io_mode != IOMode.read:
            wanted = request.extension or request.format_hint
            if wanted not in (None, ".lic"):
                raise InitializationError(f"the LIC plugin cannot write {wanted} files")
            return
        try:
            self._reader = container.Reader(request.get_file(), lenient=ImageFile.LOAD_TRUNCATED_IMAGES)
            self._metadata = self._reader.metadata()
            Image._decompression_bomb_check((self._reader.header.width, self._reader.header.height))
        except SyntaxError:
            raise InitializationError(f"{request.raw_uri!r:.80} is not a LIC file") from None
        except (OSError, Image.DecompressionBombError):
            request.finish()
            raise

    def read(self, *, index: int | EllipsisType | None = 0, mode: str | None = None, rotate: bool = False) -> Pixels:
        """A frame as (H, W) or (H, W, 2 to 4) uint8; all frames stacked for ``index=...``.

        mode    a Pillow mode to convert to, e.g. "L"
        rotate  apply the orientation that the EXIF data tell
        """
        if index is Ellipsis:
            return np.stack(builtins.list(self.iter(mode=mode, rotate=rotate)))
        self._check_index(index)
        image = Image.fromarray(self._frame(int(index or 0)))
        if mode is not None:
            image = image.convert(mode)
        if rotate:
            image.getexif()[ExifTags.Base.Orientation] = self._orientation()
            image = ImageOps.exif_transpose(image)
        return np.array(image)

    def iter(self, *, mode: str | None = None, rotate: bool = False) -> Iterator[Pixels]:
        """Every frame in turn."""
        for index in range(self._opened().header.frames):
            yield self.read(index=index, mode=mode, rotate=rotate)

    def write(self, ndimage: ArrayLike | list[ArrayLike], *, is_batch: bool = False, **kwargs: Any) -> bytes | None:
        """Write one picture, (H, W) or (H, W, 1 to 4) uint8, or a batch of frames.

        Takes the options of ``Image.save(..., format="LIC")``, ``duration`` and ``loop`` too.  Returns
        the file if the target is ``"<bytes>"``.
        """
        from pillow_lic import codec

        if self._reader is not None or self.request.mode.io_mode != IOMode.write:
            raise OSError("this LIC file was opened for reading")
        if self._written:
            raise ValueError("a LIC file is written at once; give all frames in one batch")
        batched = is_batch or isinstance(ndimage, builtins.list)
        frames = builtins.list(map(_picture, ndimage if batched else [ndimage]))  # type: ignore[arg-type]
        if not frames:
            raise ValueError("cannot write an empty batch as LIC")
        opts = options.options_from(kwargs, also_known=METADATA | {"duration", "loop", "progress", "roi"})
        animation = None
        if len(frames) > 1:
            durations = durations_of(kwargs.get("duration", 0), len(frames))
            animation = container.Animation(int(kwargs.get("loop", 0)), tuple(durations))
        mask = None
        if kwargs.get("roi") is not None:
            mask = np.asarray(mask_from(kwargs["roi"], Image.fromarray(frames[0])))
        with codec.reporting_to(kwargs.get("progress")):
            data = codec.encode(frames, opts, metadata_from(kwargs), animation, mask)
        self.request.get_file().write(data)
        self._written = True
        return data if self.request._uri_type == URI_BYTES else None

    def properties(self, index: int | EllipsisType | None = 0) -> ImageProperties:
        """Shape and type, without decoding."""
        header = self._opened().header
        shape: tuple[int, ...] = (header.height, header.width)
        shape += {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[header.mode]
        if index is Ellipsis:
            return ImageProperties((header.frames, *shape), np.dtype(np.uint8), header.frames, is_batch=True)
        self._check_index(index)
        return ImageProperties(shape, np.dtype(np.uint8), is_batch=False)

    def metadata(self, index: int | EllipsisType | None = 0, exclude_applied: bool = True) -> dict[str, Any]:
        """Coding, mode, shape, and EXIF, ICC profile and XMP where the file has them."""
        if index is not Ellipsis:
            self._check_index(index)
        header = self._opened().header
        return {
            **info_of(header),
            **shown_metadata(self._metadata),
            "mode": header.mode,
            "shape": (header.width, header.height),
            **self._timing(index),
        }

    def _timing(self, index: int | EllipsisType | None) -> dict[str, Any]:
        animation = self._opened().animation
        if animation is None:
            return {}
        shown = animation.durations if index is Ellipsis else animation.durations[int(index or 0)]
        return {"loop": animation.loop, "duration": shown}

    def _opened(self) -> container.Reader:
        if self._reader is None:
            raise OSError("this LIC file was opened for writing")
        return self._reader

    def _check_index(self, index: int | EllipsisType | None) -> None:
        frames = self._opened().header.frames
        if not isinstance(index, (int, np.integer, type(None))) or not 0 <= (index or 0) < frames:
            raise IndexError(f"the LIC file has {frames} frame(s); there is no index {index!r}")

    def _frame(self, index: int) -> Pixels:
        from pillow_lic import codec

        if self._cached is None or self._cached[0] != index:
            reader = self._opened()
            reader.lenient = ImageFile.LOAD_TRUNCATED_IMAGES
            self._cached = (index, codec.decode(reader.header, reader.frame(index)))
        return self._cached[1]

    def _orientation(self) -> int:
        exif = Image.Exif()
        exif.load(self._metadata.get("exif", b""))
        return int(exif.get(ExifTags.Base.Orientation, 1))


def _picture(array: ArrayLike) -> Pixels:
    """One picture without a last axis of one channel."""
    picture = np.asarray(array)
    return picture[:, :, 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture

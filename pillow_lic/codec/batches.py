"""Many pictures: regions of one size go through the networks together, the rest runs in threads beside them.

On CUDA a batch is up to 32 regions (a picture of one tile is one region, a tile with its margin another), the
threads' work has streams of its own, and what goes to the device goes from pinned memory.  On CPUs regions go
one by one, which is as fast, and gives to the last bit what single pictures give.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from pillow_lic import alpha, container, options
from pillow_lic.codec.analysis import latents_of
from pillow_lic.codec.common import contexts_to_try, crop
from pillow_lic.codec.decoding import decode, tile_latents, transparency_of
from pillow_lic.codec.encoding import encode, header_for, split_alpha
from pillow_lic.container import Frame
from pillow_lic.devices import WORTH_CUDA, block_dtype, choose_device, keeping_threads, on_threads, quiet
from pillow_lic.header import Header
from pillow_lic.inputs import check_pixels
from pillow_lic.models.loading import Model, OneQuality, load_model, model_by_identity
from pillow_lic.models.transforms import LATENT_STRIDE
from pillow_lic.options import EncoderOptions
from pillow_lic.pixels import Pixels, Tile, latent_size, rounded, step_of, tile_pixels, tiles_of
from pillow_lic.symbols import CodedTile, pack, quality_tensor, quantise

BATCH = 32
"""Regions that go through a network together on CUDA."""

BATCH_PIXELS = 16 * 2**20
"""Pixels of a batch: it takes about 100 bytes of memory for each."""

BEGUN_PIXELS = 2 * BATCH_PIXELS
"""Pixels of pictures that are begun before those ahead of them are in work, and half of those in work together."""

P = ParamSpec("P")
T = TypeVar("T")
Coming = TypeVar("Coming", "_Decoding", "_Encoding")

_own = threading.local()


def decode_many(
    coded: Iterable[tuple[Header, Frame]], device: str | None = None, workers: int | None = None
) -> Iterator[Tensor]:
    """The pixels of frames in turn, (C, H, W) uint8 on the device; ``workers`` threads read symbols.

    Raises ``OSError`` if data are damaged or their model is not installed.
    """
    on, threads = choose_device(device, WORTH_CUDA), options.defaults.threads
    batches = _Batches(on, _synthesise)
    with _pool(workers or threads) as pool:

        def start(header: Header, frame: Frame) -> _Decoding:
            with quiet(on, threads):
                return _Decoding.start(header, frame, on, pool, alone=batches.limit == 1)

        for picture in _in_turn((start(*item) for item in coded), batches, threads):
            yield picture.result()


def encode_many(
    pictures: Iterable[tuple[Pixels, Mapping[str, bytes]]], opts: EncoderOptions, workers: int | None = None
) -> Iterator[bytes]:
    """LIC files of pictures, (H, W) or (H, W, 2 to 4) uint8 each, and their metadata, in turn.

    ``workers`` threads write symbols.  What needs a search (effort, targets, adaptive), progressive files and
    published codecs are coded one picture after the other.  Raises what :func:`encode` does.
    """
    family = load_model(opts.model_name)
    if opts.search[0] or opts.target or opts.adaptive or opts.progressive or not isinstance(family, Model):
        for array, metadata in pictures:
            yield encode(array, opts, metadata)
        return
    on = choose_device(opts.device, WORTH_CUDA)
    _prepare(family, contexts_to_try(family, opts.context), on)
    with _pool(workers or opts.threads) as pool:

        def start(array: Pixels, metadata: Mapping[str, bytes]) -> _Encoding:
            return _Encoding.start(family, array, metadata, opts, pool)

        for picture in _in_turn((start(*item) for item in pictures), _Batches(on, _analyse), opts.threads):
            yield picture.result()


def _area(picture: _Decoding | _Encoding) -> int:
    return picture.header.width * picture.header.height


def _in_turn(started: Iterator[Coming], batches: _Batches, threads: int | None = None) -> Iterator[Coming]:
    """Pictures whose results are there, or will be soon; some more than a batch holds are begun before they are."""
    most = 2 * batches.limit + 2
    ahead: deque[Coming] = deque()
    waiting: deque[Coming] = deque()

    def held(count: int) -> bool:
        return len(waiting) > count or sum(map(_area, waiting)) > 2 * BEGUN_PIXELS

    while True:
        # However large they are, one is prepared beside the one in work.
        while len(ahead) < 2 or (len(ahead) < most and sum(map(_area, ahead)) < BEGUN_PIXELS):
            if (coming := next(started, None)) is None:
                break
            ahead.append(coming)
        if not ahead:
            break
        picture = ahead.popleft()
        waiting.append(picture)
        with quiet(batches.device, threads):
            picture.send_to(batches)
            if not ahead or held(4 * batches.limit):
                batches.finish()
        while waiting and not waiting[0].open and (waiting[0].ready or not ahead or held(most)):
            yield waiting.popleft()


@dataclass
class _Region:
    """A tile and its margin on their way through a network: (1, C, h, w), and the quality, (1,)."""

    picture: _Decoding | _Encoding
    number: int
    place: Tile
    around: Tile
    values: Tensor
    quality: Tensor


class _Batches:
    """Collects regions of one shape and model, and runs them through a network once there are enough."""

    def __init__(self, device: torch.device, run: Callable[[Sequence[_Region], Tensor, Tensor], None]) -> None:
        self.limit = BATCH if device.type == "cuda" else 1
        self.device, self.run = device, run
        self._groups: dict[tuple[object, ...], list[_Region]] = {}

    def add(self, region: _Region, pixels: int) -> None:
        """Take a region of so many pixels."""
        key = (id(region.picture.model), *region.values.shape)
        group = self._groups.setdefault(key, [])
        group.append(region)
        if len(group) >= self.limit or (len(group) + 1) * pixels > BATCH_PIXELS:
            self._run(self._groups.pop(key))

    def finish(self) -> None:
        """Run what is left."""
        for group in self._groups.values():
            self._run(group)
        self._groups.clear()

    def _run(self, group: Sequence[_Region]) -> None:
        values = torch.cat([r.values for r in group]) if len(group) > 1 else group[0].values
        if self.device.type == "cuda" and values.device.type == "cpu":
            values = values.pin_memory().to(self.device, non_blocking=True)
        quality = torch.cat([r.quality for r in group])
        self.run(group, values.contiguous(memory_format=torch.channels_last), quality)


@dataclass
class _Decoding:
    """A frame being decoded: latents come from threads, pixels are put into a tensor on the device."""

    header: Header
    model: OneQuality
    device: torch.device
    latents: list[Future[Sequence[Tensor]]]
    transparency: Future[Pixels] | None
    pixels: Tensor
    open: int = 0
    ready = True

    @classmethod
    def start(
        cls, header: Header, frame: Frame, device: torch.device, pool: ThreadPoolExecutor, *, alone: bool
    ) -> _Decoding:
        model, _ = model_by_identity(header.model_id, header.model_name).at_quality(header.quality_code)
        # Tiles that are read and synthesised together, with one margin, are faster than one in each thread.
        if frame.damaged or (alone and header.tiles > 1):
            array = decode(header, frame, str(device))
            with torch.inference_mode(False):  # as below
                pixels = torch.from_numpy(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1).copy()).to(device)
            return cls(header, model, device, [], None, pixels)
        _prepare(model, [header.context], device)
        tiles = tiles_of(header.width, header.height, header.tile)
        latents = [
            pool.submit(_aside, device, tile_latents, model, header, [(tile, data)], device)
            for tile, data in zip(tiles, frame.tiles, strict=True)
        ]
        transparency = None
        if (packed := transparency_of(frame)) is not None:
            transparency = pool.submit(alpha.unpack, packed, header.width, header.height)
        colours = 3 if header.mode.startswith("RGB") else 1
        with torch.inference_mode(False):  # whoever gets the tensor may change it
            pixels = torch.empty((colours, header.height, header.width), dtype=torch.uint8, device=device)
        return cls(header, model, device, latents, transparency, pixels, len(latents))

    def send_to(self, batches: _Batches) -> None:
        """Wait for the latents, and give each tile's to the synthesis."""
        if not self.latents:
            return
        header = self.header
        h, w = latent_size(header.height), latent_size(header.width)
        tiles = list(tiles_of(header.width, header.height, header.tile))
        y = torch.empty((1, self.model.arch.latents, h, w), dtype=torch.float32, device=self.device)
        for tile, future in zip(tiles, self.latents, strict=True):
            (part,) = future.result()
            y[0, :, tile.top : tile.bottom, tile.left : tile.right] = part
            if part.is_cuda:
                part.record_stream(torch.cuda.current_stream(self.device))
        self.latents.clear()
        step = step_of(header.width, header.height, header.tile)
        quality = quality_tensor(header.quality_code, self.device)
        for number, tile in enumerate(tiles):
            around = tile.grown(min(self.model.arch.synthesis_margin, step), h, w)
            values = y[:, :, around.top : around.bottom, around.left : around.right]
            area = values.shape[2] * values.shape[3] * LATENT_STRIDE**2
            batches.add(_Region(self, number, tile, around, values, quality), area)

    def put(self, region: _Region, values: Tensor) -> None:
        """Round a region's pixels (3, H, W) into the picture."""
        s, tile, around = LATENT_STRIDE, region.place, region.around
        target = self.pixels[:, s * tile.top : s * tile.bottom, s * tile.left : s * tile.right]
        own = values[:, s * (tile.top - around.top) :, s * (tile.left - around.left) :]
        own = own[:, : target.shape[1], : target.shape[2]]
        target.copy_(rounded(own.mean(dim=0, keepdim=True) if len(target) == 1 else own))
        self.open -= 1

    def result(self) -> Tensor:
        """The pixels, with transparency if there is any."""
        if self.transparency is None:
            return self.pixels
        transparency = torch.from_numpy(np.array(self.transparency.result()))[None]
        with on_threads():
            return torch.cat([self.pixels, transparency.to(self.device)])


def _synthesise(group: Sequence[_Region], y: Tensor, quality: Tensor) -> None:
    output = group[0].picture.model.synthesis(y.device, block_dtype(y.device))(y, quality)
    for region, values in zip(group, output, strict=True):
        assert isinstance(region.picture, _Decoding)
        region.picture.put(region, values)


@dataclass
class _Encoding:
    """A picture being coded: its regions' pixels come from threads, its tiles' bytes too."""

    header: Header
    model: Model
    metadata: Mapping[str, bytes]
    contexts: list[str]
    regions: list[tuple[Tile, Tile, Future[Tensor]]]
    transparency: bytes | None
    pool: ThreadPoolExecutor
    tiles: dict[int, Future[list[bytes]]] = field(default_factory=dict)
    open: int = 0

    @classmethod
    def start(
        cls, model: Model, array: Pixels, metadata: Mapping[str, bytes], opts: EncoderOptions, pool: ThreadPoolExecutor
    ) -> _Encoding:
        mode = check_pixels(array)
        header = header_for(model, opts, array.shape[1], array.shape[0], mode)
        shown, transparency = split_alpha(array, opts) if header.has_alpha else (array, None)
        h, w = latent_size(header.height), latent_size(header.width)
        regions = []
        for tile in tiles_of(header.width, header.height, header.tile):
            around = tile.grown(model.arch.analysis_margin, h, w)
            regions.append((tile, around, pool.submit(tile_pixels, shown, around)))
        contexts = contexts_to_try(model, opts.context)
        return cls(header, model, metadata, contexts, regions, transparency, pool, open=len(regions))

    def send_to(self, batches: _Batches) -> None:
        """Give each region's pixels to the analysis."""
        quality = quality_tensor(self.header.quality_code, batches.device)
        for number, (tile, around, future) in enumerate(self.regions):
            pixels = future.result()
            area = pixels.shape[2] * pixels.shape[3]
            batches.add(_Region(self, number, tile, around, pixels, quality), area)
        self.regions.clear()

    def put(self, region: _Region, coded: CodedTile) -> None:
        """Have a tile's symbols written by a thread."""
        device = region.quality.device
        self.tiles[region.number] = self.pool.submit(_aside, device, self._packed, coded)
        self.open -= 1

    def _packed(self, coded: CodedTile) -> list[bytes]:
        return [pack(self.model, coded, name) for name in self.contexts]

    @property
    def ready(self) -> bool:
        """Whether nothing has to be waited for."""
        return all(future.done() for future in self.tiles.values())

    def result(self) -> bytes:
        """The file, coded with the context model that makes it smallest."""
        found = [self.tiles[number].result() for number in sorted(self.tiles)]
        best = min(range(len(self.contexts)), key=lambda n: sum(len(tile[n]) for tile in found))
        frame = Frame([tile[best] for tile in found], self.transparency)
        return container.write(replace(self.header, context=self.contexts[best]), self.metadata, [frame])


def _analyse(group: Sequence[_Region], pixels: Tensor, quality: Tensor) -> None:
    picture = group[0].picture
    assert isinstance(picture, _Encoding)
    header, model = picture.header, picture.model
    y = latents_of(model, pixels, header, quality)
    for n, region in enumerate(group):
        own = crop(y[n : n + 1], region.place, region.around)
        coded = quantise(model, own, header.quality_code, region.quality, header.quantizer)
        assert isinstance(region.picture, _Encoding)
        region.picture.put(region, coded)


@contextmanager
def _pool(workers: int | None) -> Iterator[ThreadPoolExecutor]:
    """Threads whose own torch operations take one core each."""
    with keeping_threads(1) as before:
        pool = ThreadPoolExecutor(workers or before, "lic", torch.set_num_threads, (1,))
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def _aside(device: torch.device, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do something in a thread of the pool, on a stream of its own, and be through with it."""
    with quiet(device):
        if device.type != "cuda":
            return work(*args, **kwargs)
        if not hasattr(_own, "stream"):
            _own.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Its inputs come from the stream that networks run on.
        _own.stream.wait_stream(torch.cuda.default_stream(device))
        with torch.cuda.stream(_own.stream):
            result = work(*args, **kwargs)
        _own.stream.synchronize()
        return result


def _prepare(model: OneQuality, contexts: Sequence[str], device: torch.device) -> None:
    """Bring a model to the device before threads use it from streams of their own."""
    if device.type != "cuda":
        return
    model.synthesis(device, block_dtype(device))
    if isinstance(model, Model):
        model.hyper_synthesis(device)
        for name in contexts:
            if name in model.contexts or (name == "none" and model.has_lattice):
                model.context(name, device)

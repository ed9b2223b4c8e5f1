"""Messages of an image stream -> rows of pixels; what cannot be used comes back with its reason.

A message's key is the entity, its value the file of an image, or a JSON object with the URI of one; time and
label are headers. Threads decode, side by side: Pillow lets go of the interpreter while it decodes and resizes.
Memory: each thread has one image at full size, up to 16 bytes a pixel (WebP; PNG 12, a progressive JPEG 6, a
plain JPEG next to nothing), so threads · 16 · max_pixels at most; beside that a fetched file for each of
`fetches`, and the rows themselves."""

import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import msgspec
import numpy as np
from PIL.Image import DecompressionBombError

from actors.decode import BadRecord, DecodeConfig, Decoder, Value
from actors.fetch import Fetcher
from actors.pixels import checked, shrunk
from actors.ports import Headers
from actors.rejected import Rejected
from actors.times import LIMIT_US, to_us
from schemas.errors import SettingsError
from schemas.records import I64, OFFSET_BITS, U8, Decoded, ImageRows, Rows, category_hash
from schemas.stream import LABEL, StreamConfig

TIME = "time"
OBJECT = re.compile(rb"\s*\{")
Feed = Iterator[tuple[int, bytes | Rejected]]
"""Which row, and its file, or why there is none."""


class ImageDecoder(Decoder):
    """One image stream's messages -> ImageRows. Raises SettingsError where URIs' roots cannot be used."""

    def __init__(self, stream: StreamConfig, config: DecodeConfig) -> None:
        if config.format != DecodeConfig().format:
            raise SettingsError(
                f'decode.format is "{config.format}" and stream.kind is "image", whose messages are files of '
                "images or JSON with a URI. Remove decode.format."
            )
        self._stream, self._config, self._image = stream, config, stream.image
        self._time = stream.time or TIME
        self._locator = _Locator(stream.image.uri)
        self.fetcher = Fetcher(stream.image) if stream.image.uri_roots else None
        self._pool: ThreadPoolExecutor | None = None
        self._pulling = threading.Lock()
        self._at_once = threading.BoundedSemaphore(stream.image.threads)
        self.done = 0

    def decode(
        self,
        topic_index: int,
        offsets: I64,
        timestamps_ms: I64,
        keys: Sequence[bytes | None],
        values: Sequence[Value | None],
        headers: Sequence[Headers] | None = None,
    ) -> tuple[Decoded, list[BadRecord]]:
        n = len(values)
        rows = Rows.empty(self._stream.shape, n)
        assert isinstance(rows, ImageRows)
        rows.position[:] = np.int64(topic_index) << OFFSET_BITS | offsets
        rows.time_us[:] = timestamps_ms * 1000
        deleted = np.fromiter((value is None for value in values), np.bool_, n)
        entities, files, uris = [""] * n, list[tuple[int, bytes]](), list[tuple[int, str]]()
        wrong: dict[int, Rejected] = {}
        for at, value in enumerate(values):
            try:
                what = "an image" if value is not None else "a null value (a deletion)"
                entities[at] = self._entity_of(keys[at], what)
                if value is None:
                    continue
                said = headers[at] if headers is not None else ()
                self._read_headers(rows, at, said, int(timestamps_ms[at]))
                found = self._file_or_uri(value)
            except Rejected as why:
                wrong[at] = why.with_traceback(None)
                continue
            if isinstance(found, bytes):
                files.append((at, found))
            else:
                uris.append((at, found))
                name = np.frombuffer(found.encode(), np.uint8)[: rows.uri.shape[1]]
                rows.uri[at, : len(name)] = name
        if files or uris:
            wrong |= self._fill(rows, self._feed(files, uris))
        bad = [BadRecord(at, why.error, str(why)) for at, why in sorted(wrong.items())]
        decoded = Decoded(rows, entities, deleted, timestamps_ms)
        if wrong:
            keep = np.ones(n, np.bool_)
            keep[list(wrong)] = False
            decoded = decoded.take(keep)
        return decoded, bad

    def pixels(self, data: bytes) -> U8 | Rejected:
        """Of an image's file: [P], S·S·3 of each side, or why there are none. Any thread may ask: no more
        than `threads` images are there at full size, whoever asks.

        It is not raised: an error that is kept, here or as another's context, keeps by its traceback the image."""
        try:
            with self._at_once:
                found = [shrunk(checked(data, self._image), side) for side in self._image.sides]
                return np.concatenate(found) if len(found) > 1 else found[0]
        except Rejected as why:
            return why.with_traceback(None)
        except DecompressionBombError:
            reason = "more pixels than Pillow takes, whatever stream.image.max_pixels is"
            return Rejected("image_too_large", reason)
        except Exception as error:
            return Rejected("bad_image", f"{type(error).__name__}: {str(error)[:200]}")

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    # -- what a message says ----------------------------------------------------------------------

    def _read_headers(self, rows: ImageRows, at: int, headers: Headers, stamp_ms: int) -> None:
        """Time and label; of a header that is there twice, the last."""
        named = dict(headers)
        said = named.get(self._time)
        if said is not None:
            rows.time_us[at] = self._time_of(said)
        elif stamp_ms <= 0:
            reason = f"no header {self._time!r}, and no timestamp of Kafka's"
            raise Rejected("missing_time", reason)
        elif stamp_ms >= LIMIT_US // 1000:
            reason = f"no header {self._time!r}, and Kafka's timestamp does not fit 2^53 µs"
            raise Rejected("bad_time", reason)
        label = named.get(self._image.label)
        if label is not None:
            rows.categories[at, LABEL], rows.missing[at, LABEL] = category_hash(label), False

    def _time_of(self, said: bytes) -> int:
        unit = self._stream.time_unit
        value: int | float | str
        try:
            value = said.decode()
            if unit != "iso":
                value = msgspec.json.decode(said, type=int | float)
        except UnicodeDecodeError:
            raise Rejected("bad_time", f"the header {self._time!r} is not UTF-8") from None
        except msgspec.MsgspecError:
            pass  # no number
        try:
            us = to_us(value, unit)
        except Rejected as why:
            raise Rejected(why.error, f"the header {self._time!r}: {why}") from None
        if not 0 < us < LIMIT_US:
            raise Rejected("bad_time", f"the header {self._time!r} is no time after 1970")
        return us

    def _file_or_uri(self, value: Value) -> bytes | str:
        assert isinstance(value, bytes)  # files of records are refused for images
        limit = self._config.max_message_bytes
        if len(value) > limit:
            reason = f"{len(value)} bytes; decode.max_message_bytes is {limit}"
            raise Rejected("too_large", reason)
        if not OBJECT.match(value):
            return value
        uri = self._locator.uri(value)
        if self.fetcher is None:
            raise Rejected("uri_refused", "stream.image.uri_roots is empty: no URI is fetched")
        return self.fetcher.allowed(uri)

    # -- pixels -----------------------------------------------------------------------------------

    def _feed(self, files: list[tuple[int, bytes]], uris: list[tuple[int, str]]) -> Feed:
        yield from files
        if self.fetcher is not None and uris:
            for i, found in self.fetcher.each([uri for _, uri in uris]):
                yield uris[i][0], found

    def _fill(self, rows: ImageRows, feed: Feed) -> dict[int, Rejected]:
        """Writes the pixels of what is fed. Returns which rows have none, and why."""
        # on metadata that they dislike and go on without; once a call, for filters may be set anew
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._image.threads, "decode")
        wrong: dict[int, Rejected] = {}

        def work() -> None:
            while True:
                with self._pulling:
                    at, found = next(feed, (-1, b""))
                if at < 0:
                    return
                made = found if isinstance(found, Rejected) else self.pixels(found)
                if isinstance(made, Rejected):
                    wrong[at] = made
                else:
                    rows.pixels[at] = made
                self.done += 1  # a lost count does not matter

        workers = [self._pool.submit(work) for _ in range(self._image.threads)]
        wait(workers)
        for worker in workers:
            worker.result()
        return wrong


class _Locator:
    """Finds the URI in a JSON object; nothing else of it is made."""

    def __init__(self, path: str) -> None:
        self._names = path.split(".")
        if not all(self._names):
            raise SettingsError(
                f"stream.image.uri: the path {path!r} has an empty part; write it as a.b.c."
            )
        kind: type = str
        for name in reversed(self._names):
            kind = msgspec.defstruct(
                "Object", [("inner", kind | None, None)], rename={"inner": name}
            )
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(kind).decode

    def uri(self, value: bytes) -> str:
        path = ".".join(self._names)
        try:
            found = self._decode(value)
        except UnicodeDecodeError:
            raise Rejected("invalid_utf8", "the message: text that is not UTF-8") from None
        except RecursionError:
            raise Rejected("too_deep", "the message: nested too deeply") from None
        except msgspec.ValidationError as why:
            raise Rejected("wrong_type", f"{path!r}: {why}; needed is a text") from None
        except msgspec.MsgspecError as why:
            raise Rejected("not_json", f"the message: {why}") from None
        for _ in self._names:
            found = None if found is None else found.inner
        if found is None:
            raise Rejected("uri_refused", f"{path!r}: no URI; a JSON message needs one")
        return str(found)

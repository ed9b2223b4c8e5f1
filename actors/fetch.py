"""Files behind URIs: many at a time, each for a bounded time, by fsspec's filesystems.

A URI comes with a record, so it is trusted in nothing: only what begins with one of the settings' roots is
fetched. Credentials are what fsspec finds in the environment. No reason repeats an error's own text, nor the
user of a URI: both may hold a secret.

Every try is a thread of its own, which is left behind where it does not come back in time; no more than
2 · `fetches` threads are there at once, those that hang included."""

import heapq
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from actors.rejected import Rejected
from schemas.errors import SettingsError
from schemas.stream import URI_BYTES, ImageConfig

PIECE = 1 << 20
LOOK_S = 0.05  # how often it is asked whether another caller's thread has ended
DEFINITE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""No second try finds what these did not."""
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp"}
_ODD = re.compile(r"[\x00-\x1f\x7f\\?#]|::|%(?:00|23|25|2e|2f|3f|5c)", re.IGNORECASE)
"""What some store may read as something else than a name."""


@dataclass(slots=True, eq=False)
class _Try:
    at: int  # which of the URIs
    number: int  # 1: the first
    deadline: float
    left: bool = False  # behind: it hung


Found = bytes | Exception
Done = SimpleQueue[tuple[_Try, Found]]
Waiting = list[tuple[float, int, int]]
"""A heap: due when, which of the URIs, the number of its next try."""


class Fetcher:
    """Of one stream. Raises SettingsError where a root cannot be used. Any thread may call it."""

    def __init__(self, config: ImageConfig) -> None:
        self._config = config
        self._roots = tuple(map(_root, config.uri_roots))
        self._filesystems: dict[str, Any] = {}
        self._opening = threading.Lock()
        self._counting = threading.Lock()
        self._running = self._hung = 0

    def allowed(self, uri: str) -> str:
        """The URI, where it may be fetched. Raises Rejected where not."""
        allowed(uri, self._roots)
        return uri

    def get(self, uris: Sequence[str]) -> list[bytes | Rejected]:
        """What is behind each, in their order, or why it is not to be had. Holds all of it in memory."""
        found = dict(self.each(uris))
        return [found[at] for at in range(len(uris))]

    def submit(self, uris: Sequence[str]) -> Future[list[bytes | Rejected]]:
        """As `get`, without waiting."""
        future: Future[list[bytes | Rejected]] = Future()

        def work() -> None:
            try:
                future.set_result(self.get(uris))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, name="fetcher", daemon=True).start()
        return future

    def each(self, uris: Sequence[str]) -> Iterator[tuple[int, bytes | Rejected]]:
        """As they come, with their places. No more than `fetches` files are held beside the one handed out.

        A URI takes up to fetch_tries · fetch_s, and pauses of fetch_s / 10, doubled each time, between."""
        done: Done = SimpleQueue()
        waiting = [(0.0, at, 1) for at in range(len(uris))]
        running: dict[int, _Try] = {}
        moved = time.monotonic()
        try:
            while waiting or running:
                now = time.monotonic()
                while self._next_is_due(waiting, running, now) and self._may_start():
                    _, at, number = heapq.heappop(waiting)
                    running[at] = self._start(uris[at], at, number, done)
                if running:
                    moved = now
                elif self._stuck() and now - moved >= self._config.fetch_s:
                    break
                for attempt, found in self._next(done, running, waiting):
                    del running[attempt.at]
                    if self._again(attempt, found):
                        due = time.monotonic() + self._pause_s(attempt.number)
                        heapq.heappush(waiting, (due, attempt.at, attempt.number + 1))
                    elif isinstance(found, bytes | Rejected):
                        yield attempt.at, found
                    else:
                        yield attempt.at, _unreachable(uris[attempt.at], found, attempt.number)
            for _, at, _ in waiting:
                yield at, Rejected("unreachable", f"{redacted(uris[at])}: {self._hung} others hang")
        finally:
            for attempt in running.values():
                self._leave(attempt)

    # -- tries ------------------------------------------------------------------------------------

    def _next(
        self, done: Done, running: dict[int, _Try], waiting: Waiting
    ) -> list[tuple[_Try, Found]]:
        """Waits for the next try to end; without one, those whose time is over."""
        now = time.monotonic()
        until = [attempt.deadline for attempt in running.values()]
        if waiting:  # one that is due waits for a thread
            until.append(waiting[0][0] if waiting[0][0] > now else now + LOOK_S)
        try:
            attempt, found = done.get(timeout=max(0.0, min(until) - now))
        except Empty:
            now = time.monotonic()
            late = [attempt for attempt in running.values() if attempt.deadline <= now]
            for attempt in late:
                self._leave(attempt)
            return [(attempt, TimeoutError()) for attempt in late]
        return [(attempt, found)] if running.get(attempt.at) is attempt else []

    def _next_is_due(self, waiting: Waiting, running: dict[int, _Try], now: float) -> bool:
        """... and may be held: what has come and was not handed out yet is among `running`."""
        return bool(waiting) and waiting[0][0] <= now and len(running) < self._config.fetches

    def _may_start(self) -> bool:
        """Takes the place of a thread."""
        with self._counting:
            most = self._config.fetches
            room = self._running < most and self._running + self._hung < 2 * most
            self._running += room
            return room

    def _stuck(self) -> bool:
        """Whether all threads that may be there hang."""
        with self._counting:
            return self._hung >= 2 * self._config.fetches

    def _start(self, uri: str, at: int, number: int, done: Done) -> _Try:
        attempt = _Try(at, number, time.monotonic() + self._config.fetch_s)

        def work() -> None:
            found: Found
            try:
                found = self._read(uri)
            except Exception as error:
                found = error.with_traceback(None)  # it would keep what was read
            with self._counting:
                if attempt.left:
                    self._hung -= 1
                else:
                    self._running -= 1
                    attempt.left = True
            done.put((attempt, found))

        threading.Thread(target=work, name="fetch", daemon=True).start()
        return attempt

    def _leave(self, attempt: _Try) -> None:
        with self._counting:
            if not attempt.left:
                attempt.left = True
                self._running -= 1
                self._hung += 1

    def _again(self, attempt: _Try, error: Found) -> bool:
        passing = isinstance(error, OSError) and not isinstance(error, DEFINITE)
        return passing and attempt.number < self._config.fetch_tries

    def _pause_s(self, number: int) -> float:
        return self._config.fetch_s / 10 * 2.0 ** (number - 1) * random.uniform(0.5, 1.5)

    # -- files ------------------------------------------------------------------------------------

    def _read(self, uri: str) -> bytes:
        limit, data = self._config.max_bytes, bytearray()
        root = allowed(uri, self._roots)
        filesystem = self._filesystem(root)
        if isinstance(filesystem, LocalFileSystem):
            _check_local(uri, filesystem._strip_protocol(uri), filesystem._strip_protocol(root))
        with filesystem.open(uri, "rb") as file:
            while piece := file.read(min(PIECE, limit + 1 - len(data))):
                data += piece
                if len(data) > limit:
                    reason = f"{redacted(uri)}: more than stream.image.max_bytes, {limit}"
                    raise Rejected("image_too_large", reason)
        return bytes(data)

    def _filesystem(self, root: str) -> Any:
        """One for all threads: fsspec would make, and keep, one for each."""
        with self._opening:
            if root not in self._filesystems:
                self._filesystems[root] = fsspec.core.url_to_fs(root)[0]
            return self._filesystems[root]


def allowed(uri: str, roots: Sequence[str]) -> str:
    """The root that a URI lies below. Raises Rejected where there is none, or it may not be what it seems."""
    first, *parts = uri.partition("://")[2].split("/")
    if odd := _ODD.search(uri):
        why = f"{odd[0]!r} in it"
    elif any("\ud800" <= sign <= "\udfff" for sign in uri):
        why = "half a character in it"
    elif len(uri.encode()) > URI_BYTES:
        why = f"more than {URI_BYTES} bytes"
    elif "@" in first:
        why = "a user in it; credentials come from the daemon's environment"
    elif first in (".", "..") or any(part in ("", ".", "..") for part in parts):
        why = "a part of it is empty, . or .."
    else:
        found = next((root for root in roots if uri.startswith(root)), None)
        if found is not None:
            return found
        why = "it begins with none of stream.image.uri_roots"
    raise Rejected("uri_refused", f"{redacted(uri)}: {why}")


def redacted(uri: str) -> str:
    """As it may be shown: without a user and their password, and what is asked behind a `?`."""
    hidden = re.sub(r"\?.*", "?***", re.sub(r"://.*@", "://***@", uri, flags=re.DOTALL))
    return repr(hidden if len(hidden) <= URI_BYTES else hidden[:URI_BYTES] + "…")


def _root(given: str) -> str:
    """As URIs are compared with it: ends with a slash."""
    key = "stream.image.uri_roots"
    protocol, separator, rest = given.partition("://")
    root = f"{protocol.lower()}://" + (f"{rest.rstrip('/')}/" if rest else "")
    if not (protocol and separator):
        raise SettingsError(
            f'{key} has {redacted(given)}, which is no URI. Write it as "s3://bucket/" or "file:///data/images/".'
        )
    try:
        allowed(f"{root}x", (root,))
        fsspec.get_filesystem_class(protocol.lower())
    except Rejected as why:
        raise SettingsError(f"{key} cannot have {why}. Change it.") from None
    except ValueError:
        raise SettingsError(
            f"{key} has {redacted(given)}, and fsspec knows no {protocol!r}. Change it."
        ) from None
    except ImportError as error:
        package = PACKAGES.get(protocol.lower())
        how = f"pip install {package}" if package else str(error)
        raise SettingsError(f"{key} has {redacted(given)}, which needs a package: {how}.") from None
    return root


def _check_local(uri: str, path: str, root: str) -> None:
    """Raises Rejected where links lead out of the root, or to what is no file: a pipe would hang."""
    real = Path(path).resolve()
    if not real.is_relative_to(Path(root).resolve()):
        raise Rejected("uri_refused", f"{redacted(uri)}: a link leads out of its root")
    if real.exists() and not real.is_file():
        raise Rejected("unreachable", f"{redacted(uri)}: no plain file")


def _unreachable(uri: str, error: Exception, tries: int) -> Rejected:
    what = "no answer in time" if isinstance(error, TimeoutError) else f"{type(error).__name__}"
    how_often = f", {tries} tries" if tries > 1 else ""
    return Rejected("unreachable", f"{redacted(uri)}: {what}{how_often}")

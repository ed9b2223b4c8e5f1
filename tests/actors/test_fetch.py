"""Images behind URIs: which are fetched, how often, for how long."""

import importlib.util
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from actors.fetch import Fetcher, allowed, redacted
from actors.rejected import Rejected
from schemas.errors import SettingsError
from schemas.records import ImageRows
from schemas.stream import URI_BYTES, ImageConfig
from tests.actors.images import RED, decoder, pixels, plain, run, saved
from tests.helpers import eventually

PICTURE = saved(plain("RGB", RED), "PNG")
SECRET = "hunter2"


class Flaky(MemoryFileSystem):
    """A store that fails as it is told, per path, and counts."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    errors: ClassVar[dict[str, list[Exception]]] = {}
    opened: ClassVar[Counter[str]] = Counter()
    open_now: ClassVar[set[int]] = set()
    most_at_once = 0
    hang = threading.Event()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("flaky://")))

    def _open(self, path: str, *args: Any, **more: Any) -> Any:
        kind = type(self)
        kind.opened[path] += 1
        kind.open_now.add(threading.get_ident())
        kind.most_at_once = max(kind.most_at_once, len(kind.open_now))
        try:
            if "hang" in path:
                kind.hang.wait()
            if self.errors.get(path):
                raise self.errors[path].pop(0)
            return super()._open(path, *args, **more)
        finally:
            kind.open_now.discard(threading.get_ident())


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture
def store() -> Iterator[Flaky]:
    """/bucket/0 to /bucket/9 are there."""
    Flaky.errors.clear()
    Flaky.hang.clear()
    found = Flaky()
    for at in range(10):
        found.pipe(f"/bucket/{at}", b"%d" % at)
    Flaky.opened.clear()
    Flaky.most_at_once = 0
    yield found
    Flaky.hang.set()
    eventually(lambda: not any(t.name == "fetch" for t in threading.enumerate()))


def fetcher(**more: Any) -> Fetcher:
    return Fetcher(ImageConfig(**{"uri_roots": ("flaky://bucket/",), "fetch_s": 1.0, **more}))


def reasons(found: list[bytes | Rejected]) -> list[str | bytes]:
    return [f.error if isinstance(f, Rejected) else f for f in found]


# -- which ------------------------------------------------------------------------------------------

ROOTS = ("s3://bucket/photos/", "file:///data/")


@pytest.mark.parametrize(
    "uri",
    ["s3://bucket/photos/a.jpg", "s3://bucket/photos/a/b c@d.jpg", "file:///data/ä.png"],
)
def test_what_lies_below_a_root_is_fetched(uri: str) -> None:
    assert uri.startswith(allowed(uri, ROOTS))


@pytest.mark.parametrize(
    "uri",
    [
        "", "a.jpg", "/data/a.jpg", "s3://bucket/photos/", "s3://bucket/photos", "s3://bucket/other/a",
        "s3://bucket/photosa", "s3://bucket2/photos/a", "S3://bucket/photos/a", "http://bucket/photos/a",
        "s3://bucket/photos/../other/a", "s3://bucket/photos/./a", "s3://bucket/photos//a",
        "s3://bucket/photos/%2e%2e/other/a", "s3://bucket/photos/%2E./a", "s3://bucket/photos/..%2fa",
        "s3://bucket/photos/..%5ca", "s3://bucket/photos/..\\a", "s3://bucket/photos/%252e/a",
        "s3://bucket/photos/a?versionId=1", "s3://bucket/photos/a#b", "s3://bucket/photos/a%3fb",
        "s3://bucket/photos/a\0.jpg", "s3://bucket/photos/a\n", "s3://bucket/photos/%00a",
        "simplecache::s3://bucket/photos/a", "s3://bucket/photos/a::file:///etc/passwd",
        "zip://a::s3://bucket/photos/b", "s3://user:hunter2@bucket/photos/a", "s3://..",
        "file://data/a", "file://localhost/data/a", "file:///data/../etc/passwd", "file:///etc/passwd",
        "s3://bucket/photos/" + "ä" * (URI_BYTES // 2), "s3://bucket/photos/\ud800",
    ],
)  # fmt: skip
def test_all_else_is_refused(uri: str) -> None:
    with pytest.raises(Rejected) as why:
        allowed(uri, ROOTS)
    assert why.value.error == "uri_refused"
    assert SECRET not in str(why.value)
    assert len(str(why.value)) < 4 * URI_BYTES


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://me:hunter2@bucket/a", "s3://***@bucket/a"),
        ("s3://me:hun/ter2@bucket/a@b", "s3://***@b"),
        ("s3://bucket/a?X-Amz-Signature=hunter2", "s3://bucket/a?***"),
    ],
)
def test_secrets_of_a_uri_are_not_shown(uri: str, shown: str) -> None:
    assert redacted(uri) == repr(shown)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("bucket/", "no URI"),
        ("nowhere://bucket/", "no 'nowhere'"),
        ("s3://a/../b/", r"\.\."),
        ("file:///data::x/", "::"),
        ("s3://me:hunter2@bucket/", "credentials"),
    ],
)
def test_a_root_that_cannot_be_used_is_a_mistake_in_the_settings(root: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as why:
        decoder(uri_roots=(root,))
    assert SECRET not in str(why.value)


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(SettingsError, match="pip install s3fs"):
        decoder(uri_roots=("s3://bucket/",))


# -- how ----------------------------------------------------------------------------------------------


def test_files_come_in_the_order_that_was_asked_for(store: Flaky) -> None:
    what = fetcher(fetches=3)
    uris = [f"flaky://bucket/{at % 10}" for at in range(40)]
    assert what.get(uris) == [b"%d" % (at % 10) for at in range(40)]
    assert what.submit(uris[:3]).result(10) == [b"0", b"1", b"2"]
    assert 1 <= Flaky.most_at_once <= 3


def test_a_store_that_stumbles_is_asked_again(store: Flaky) -> None:
    Flaky.errors |= {
        "/bucket/1": [ConnectionResetError(SECRET), TimeoutError()],
        "/bucket/2": [OSError(SECRET)] * 3,
        "/bucket/3": [PermissionError(SECRET)],
        "/bucket/4": [ValueError(SECRET)],
    }
    uris = [f"flaky://bucket/{name}" for name in (0, 1, 2, 3, 4, "none")]
    found = fetcher(fetch_tries=3).get(uris)
    assert reasons(found) == [b"0", b"1", *["unreachable"] * 4]
    assert Flaky.opened == {
        "/bucket/0": 1, "/bucket/1": 3, "/bucket/2": 3, "/bucket/3": 1, "/bucket/4": 1, "/bucket/none": 1,
    }  # fmt: skip
    assert "OSError, 3 tries" in str(found[2])
    assert "FileNotFoundError" in str(found[5])
    assert SECRET not in str(found)


def test_a_file_is_read_no_further_than_it_may_be_large(store: Flaky) -> None:
    store.pipe("/bucket/fits", b"x" * 64)
    store.pipe("/bucket/large", b"x" * 65)
    found = fetcher(max_bytes=64).get(["flaky://bucket/fits", "flaky://bucket/large"])
    assert reasons(found) == [b"x" * 64, "image_too_large"]


def test_one_that_hangs_holds_up_nobody_else(store: Flaky) -> None:
    found = fetcher(fetches=2, fetch_tries=2, fetch_s=0.2).get(
        ["flaky://bucket/hang", "flaky://bucket/1"]
    )
    assert reasons(found) == ["unreachable", b"1"]
    assert "no answer in time, 2 tries" in str(found[0])


def test_a_store_that_hangs_leaves_few_threads_and_gives_up(store: Flaky) -> None:
    what = fetcher(fetches=2, fetch_tries=3, fetch_s=0.05)
    found = what.get([f"flaky://bucket/hang{at}" for at in range(50)])
    assert set(reasons(found)) == {"unreachable"}
    assert 1 <= sum(t.name == "fetch" for t in threading.enumerate()) <= 4
    assert sum(Flaky.opened.values()) == 4
    assert reasons(what.get(["flaky://bucket/1"])) == ["unreachable"]  # no thread is free
    Flaky.hang.set()
    eventually(lambda: reasons(what.get(["flaky://bucket/1"])) == [b"1"])


def test_few_files_wait_to_be_taken(store: Flaky) -> None:
    """Whoever takes them decides the pace: memory is bounded."""
    what = fetcher(fetches=2)
    for taken, (at, found) in enumerate(
        what.each([f"flaky://bucket/{n % 10}" for n in range(30)]), 1
    ):
        assert found == b"%d" % (at % 10)
        assert sum(Flaky.opened.values()) <= taken + 2


def test_callers_share_the_places(store: Flaky) -> None:
    what = fetcher(fetches=2, fetch_s=5.0)
    uris = [f"flaky://bucket/{n % 10}" for n in range(60)]
    waiting = [what.submit(uris) for _ in range(4)]
    assert all(w.result(30) == [b"%d" % (n % 10) for n in range(60)] for w in waiting)
    assert Flaky.most_at_once <= 2


# -- in messages --------------------------------------------------------------------------------------


@pytest.fixture
def file_root(tmp_path: Path) -> str:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(PICTURE)
    (tmp_path / "in" / "page.png").write_bytes(b"<html>")
    (tmp_path / "in" / "again.png").write_bytes(b'{"uri": "x"}')
    (tmp_path / "out.png").write_bytes(PICTURE)
    return f"file://{tmp_path}/in/"


def message(uri: Any) -> bytes:
    return json.dumps({"more": [{"deep": 1}], "uri": uri}).encode()


def test_an_image_may_be_behind_a_uri(file_root: str) -> None:
    uris = [f"{file_root}{name}" for name in ("a.png", "page.png", "again.png", "none.png", "../out.png")]  # fmt: skip
    values = [message(uri) for uri in uris] + [PICTURE, b" \n" + message(uris[0])]
    what = decoder(uri_roots=(file_root,), keep="uri")
    found, bad = run(what, values)
    assert [(b.at, b.error) for b in bad] == [
        (1, "image_format"), (2, "image_format"), (3, "unreachable"), (4, "uri_refused"),
    ]  # fmt: skip
    assert (pixels(found) == RED).all()
    assert isinstance(found.rows, ImageRows)
    kept = [bytes(row).rstrip(b"\0").decode() for row in found.rows.uri]
    assert found.rows.uri.shape == (3, URI_BYTES)
    assert kept == [uris[0], "", uris[0]]
    what.close()


def test_links_stay_below_their_root(tmp_path: Path, file_root: str) -> None:
    inside = tmp_path / "in"
    (inside / "near.png").symlink_to("a.png")
    (inside / "far.png").symlink_to("../out.png")
    (inside / "up").symlink_to(tmp_path)
    os.mkfifo(inside / "pipe.png")
    (tmp_path / "root").symlink_to(inside)
    for root in (file_root, f"file://{tmp_path}/root/"):
        fetcher = Fetcher(ImageConfig(uri_roots=(root,)))
        names = ("near.png", "far.png", "up/out.png", "pipe.png", "up", "none.png")
        first, *others = fetcher.get([root + name for name in names])
        assert first == PICTURE
        found = [other.error for other in others if isinstance(other, Rejected)]
        assert found == ["uri_refused"] * 2 + ["unreachable", "uri_refused", "unreachable"]


def test_uris_of_another_store_and_path(store: Flaky) -> None:
    fsspec.filesystem("memory").pipe("/shop/a.png", PICTURE)
    what = decoder(uri_roots=("memory://shop",), uri="picture.at.uri")
    uri = "memory://shop/a.png"
    found, bad = run(what, [json.dumps({"picture": {"at": {"uri": uri}}}).encode(), message(uri)])
    assert [(b.at, b.error) for b in bad] == [(1, "uri_refused")]
    assert (pixels(found) == RED).all()
    assert isinstance(found.rows, ImageRows)
    assert found.rows.uri.shape == (1, 0)
    what.close()


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (b"{", "not_json"),
        (b'{"uri": 5}', "wrong_type"),
        (b'{"uri": null}', "uri_refused"),
        (b"{}", "uri_refused"),
        (b'{"uri": "\xff"}', "invalid_utf8"),
        (b'{"a":' + b"[" * 100_000, "too_deep"),
        (b'{"uri": "http://example.org/a.png"}', "uri_refused"),
        (b"[]", "image_format"),
    ],
)
def test_messages_that_name_no_image(value: bytes, error: str) -> None:
    what = decoder(uri_roots=("memory://shop/",))
    _, bad = run(what, [value])
    assert [b.error for b in bad] == [error]
    what.close()


def test_without_roots_no_uri_is_fetched() -> None:
    _, bad = run(decoder(), [message("file:///etc/passwd")])
    assert [b.error for b in bad] == ["uri_refused"]
    assert "uri_roots" in bad[0].reason


def test_a_path_with_an_empty_part_is_a_mistake_in_the_settings() -> None:
    with pytest.raises(SettingsError, match=r"a\.\.b"):
        decoder(uri="a..b")

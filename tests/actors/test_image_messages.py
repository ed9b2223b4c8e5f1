"""Messages of an image stream: entity, time, label; deletions; what a shard makes of them."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.decode import DecodeConfig, make_decoder
from actors.decode_images import ImageDecoder
from actors.ports import Batch
from actors.quarantine import Quarantine
from schemas.errors import SettingsError
from schemas.records import OFFSET_BITS, ImageRows, category_hash
from tests.actors.images import RED, SIDE, decoder, pixels, plain, run, saved, stream
from tests.fake_sink import MemoryServer
from tests.fakes import Crashed, MemorySource
from tests.services import make_shard

PURPLE = (200, 0, 100)
PICTURE = saved(plain("RGB", PURPLE), "PNG")
T0 = 1_700_000_000_000_000


def test_rows_have_entity_place_and_kafkas_time() -> None:
    found, bad = run(decoder(), [PICTURE, PICTURE], ["ä".encode(), b"b"])
    assert not bad
    rows = found.rows
    assert isinstance(rows, ImageRows)
    assert found.entities == ["ä", "b"]
    assert rows.position.tolist() == [(2 << OFFSET_BITS) | 5, (2 << OFFSET_BITS) | 7]
    assert rows.time_us.tolist() == [T0, T0]
    assert found.timestamp_ms.tolist() == [T0 // 1000] * 2
    assert rows.missing.tolist() == [[True], [True]]
    assert (rows.pixels.shape, rows.uri.shape, rows.vector.shape) == ((2, 192), (2, 0), (2, 0))
    assert rows.numbers.shape == (2, 0)
    assert not found.deleted.any()


@pytest.mark.parametrize(
    ("unit", "said", "us"),
    [
        ("auto", b"1700000000", T0),
        ("auto", b"1700000000.25", T0 + 250_000),
        ("auto", b"1700000000000", T0),
        ("auto", b"1700000000000000", T0),
        ("auto", b"2023-11-14T22:13:20Z", T0),
        ("iso", b"2023-11-14T23:13:20.5+01:00", T0 + 500_000),
        ("ms", b"1700000000", T0 // 1000),
        ("auto", b"", "bad_time"),
        ("auto", b"soon", "bad_time"),
        ("auto", b"-5", "bad_time"),
        ("auto", b"1e300", "bad_time"),
        ("auto", b"9" * 400, "bad_time"),
        ("auto", b"NaN", "bad_time"),
        ("auto", b"\xff", "bad_time"),
        ("iso", b"1700000000", "bad_time"),
        ("s", b"2023-11-14T22:13:20Z", "bad_time"),
    ],
)
@pytest.mark.parametrize("name", ["time", "taken"])
def test_a_header_may_say_when(name: str, unit: str, said: bytes, us: int | str) -> None:
    what = decoder(time_unit=unit, time="" if name == "time" else name)
    found, bad = run(what, [PICTURE], headers=[[("other", b"1"), (name, said)]])
    assert (found.rows.time_us.tolist() or [b.error for b in bad]) == [us]


def test_without_any_time_there_is_no_record() -> None:
    _, bad = run(decoder(), [PICTURE, PICTURE], headers=[[], [("time", None)]], stamp_ms=-1)
    assert [b.error for b in bad] == ["missing_time"] * 2


def test_a_header_may_have_the_label() -> None:
    headers: list[Any] = [[("label", b"cat")], [], [("label", None)], [("species", b"dog")]]
    found, _ = run(decoder(), [PICTURE] * 4, headers=headers)
    assert found.rows.missing[:, 0].tolist() == [False, True, True, True]
    assert found.rows.categories[0, 0] == category_hash("cat")
    found, _ = run(decoder(label="species"), [PICTURE] * 4, headers=headers)
    assert found.rows.missing[:, 0].tolist() == [True, True, True, False]


def test_a_null_value_deletes_and_needs_a_key() -> None:
    values = [PICTURE, None, None, PICTURE, PICTURE, PICTURE]
    keys = [b"a", b"a", None, None, b"", b"\xff"]
    found, bad = run(decoder(), values, keys, [[("time", b"soon" if v is None else b"5")] for v in values])  # fmt: skip
    assert found.entities == ["a", "a"]
    assert found.deleted.tolist() == [False, True]
    assert found.rows.time_us.tolist() == [5_000_000, T0]
    assert [(b.at, b.error) for b in bad] == [
        (2, "missing_entity"), (3, "missing_entity"), (4, "bad_entity"), (5, "invalid_utf8"),
    ]  # fmt: skip


ANY_TEXT = st.text(max_size=12) | st.just("memory://shop/\ud800")
FUZZED = decoder(uri_roots=("memory://shop/",), fetch_tries=1)


@given(
    key=st.none() | st.binary(max_size=5),
    value=st.binary(max_size=40)
    | st.recursive(ANY_TEXT | st.integers() | st.none(), lambda inner: st.lists(inner, max_size=2)).map(
        lambda uri: json.dumps({"uri": uri}).encode()
    ),
    headers=st.lists(
        st.tuples(
            st.sampled_from(["time", "label", "x"]),
            st.none() | st.binary(max_size=30) | st.floats().map(lambda x: repr(x).encode())
            | st.integers().map(lambda n: b"%d" % n) | st.datetimes().map(lambda t: t.isoformat().encode()),
        ),
        max_size=3,
    ),
    stamp=st.integers(-(2**63), 2**63 - 1),
)  # fmt: skip
def test_whatever_is_in_a_message_nothing_is_raised(
    key: bytes | None, value: bytes, headers: Any, stamp: int
) -> None:
    found, bad = run(FUZZED, [PICTURE, value], [key, key], [headers, headers], stamp)
    assert len(found.entities) + len(bad) == 2
    assert all(0 < us < 2**53 for us in found.rows.time_us.tolist())


def test_messages_are_capped() -> None:
    what = decoder(DecodeConfig(max_message_bytes=len(PICTURE), max_entity_bytes=3))
    _, bad = run(what, [PICTURE, PICTURE + b"\0", PICTURE], [b"abc", b"a", b"abcd"])
    assert [(b.at, b.error) for b in bad] == [(1, "too_large"), (2, "bad_entity")]


def test_another_format_of_messages_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"decode\.format"):
        make_decoder(stream(), DecodeConfig(format="arrow"))


def test_nothing_comes_of_nothing() -> None:
    found, bad = run(decoder(), [])
    assert (found.entities, bad) == ([], [])
    assert pixels(found).shape == (0, SIDE, SIDE, 3)


# -- in the shard -------------------------------------------------------------------------------------


class Mined(ImageDecoder):
    """Some pictures end the process."""

    mine = saved(plain("RGB", RED), "PNG")

    def pixels(self, data: bytes) -> Any:
        if data == self.mine:
            raise Crashed
        return super().pixels(data)


def test_a_picture_that_ends_the_process_is_set_aside(tmp_path: Path) -> None:
    """What a codec's crash in a thread leaves behind is what any crash does: a marker."""
    values: list[bytes | None] = [PICTURE, Mined.mine, PICTURE]
    headers: Any = [[("label", b"%d" % at)] for at in range(3)]
    batch = Batch(
        0, 0, np.array([4, 6, 7]), np.full(3, 9000), [b"a", b"b", b"c"], values, 8, headers
    )
    for _ in range(2):  # among others, then alone
        what = Mined(stream(), DecodeConfig())
        with pytest.raises(Crashed):
            Quarantine(tmp_path, ("images",)).decode(batch, what)
        what.close()
    what = Mined(stream(), DecodeConfig())
    found, bad = Quarantine(tmp_path, ("images",)).decode(batch, what)
    what.close()
    assert [(b.at, b.error) for b in bad] == [(1, "crashes_decoder")]
    assert found.entities == ["a", "c"]
    assert found.rows.categories[:, 0].tolist() == [category_hash("0"), category_hash("2")]
    assert (pixels(found) == PURPLE).all()


def test_headers_go_with_their_records() -> None:
    headers: Any = [[("label", b"%d" % at)] for at in range(5)]
    batch = Batch(0, 0, np.arange(5), np.arange(5), [b"k"] * 5, [PICTURE] * 5, 5, headers)
    assert batch.cut(2, 4).headers == headers[2:4]
    assert batch._replace(headers=None).cut(2, 4).headers is None


def test_a_shard_that_decodes_for_long_is_alive(tmp_path: Path) -> None:
    shard = make_shard(tmp_path, MemorySource(), MemoryServer(), stream=stream())
    before = shard.stats().progress
    run(shard.decoder, [PICTURE] * 3)  # type: ignore[arg-type]
    assert shard.stats().progress == before + 3
    shard.close()


def test_decoding_shows_that_it_lives_and_leaves_no_thread() -> None:
    before = threading.active_count()
    what = decoder(threads=3)
    assert threading.active_count() == before  # none before they are needed
    run(what, [PICTURE, b"no picture", PICTURE])
    assert what.done == 3
    what.close()
    assert threading.active_count() == before

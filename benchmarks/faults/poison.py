"""Records that no decoder takes, one in a hundred, of every sort that was thought of."""

import json
import random
import struct
import zlib
from typing import Any

from benchmarks.faults.outcome import Outcome, compare, letters
from benchmarks.faults.service import Service, until
from benchmarks.faults.streams import image

EACH = 99
"""Good records to a bad one."""
AT = 1_600_000_000


def sorts(rng: random.Random) -> dict[str, bytes]:
    """One of each. The bytes around what is wrong are those of a good record."""
    good, pick = _good(), rng.choice
    return {
        "empty": b"",
        "not JSON": rng.randbytes(rng.randrange(1, 200)) + b"}",
        "truncated": good[: rng.randrange(1, len(good))],
        "two records": good + good,
        "a list": b"[" + good + b"]",
        "a text": json.dumps(good.decode()).encode(),
        "invalid UTF-8": good.replace(b"e1", pick((b"\xff\xfe", b"\xed\xa0\x80"))),
        "half a surrogate": good.replace(b"e1", rb"\ud800"),
        "nested": _with("what", b"[" * 100_000 + b"]" * 100_000),
        "nested objects": b'{"who":' * 100_000 + b"1" + b"}" * 100_000,
        "20 MB": _with("what", b'"' + b"x" * (20 << 20) + b'"'),
        "wrong type": _with(*pick(WRONG)),
        "NaN": _with(pick(("at", "who")), b"NaN"),  # of a number it is only missing
        "infinity": _with("amount", pick((b"Infinity", b"-Infinity"))),
        "1e999": _with("amount", pick((b"1e999", b"-1e999"))),
        "beyond float32": _with("amount", pick((b"3.5e38", b"-1" + b"0" * 60))),
        "beyond int64": _with("at", pick((b"%d" % 2**63, b"%d" % 10**400))),
        "twice the key": good[:-1] + b',"who":["e1"]}',  # the last one counts
        "no entity": _with("who", pick((b"null", b'""'))),
        "no such key": good.replace(b'"who"', b'"whom"'),
        "entity too long": _with("who", b'"' + b"e" * 513 + b'"'),
        "no time": _with("at", b"null"),
        "absurd time": _with("at", pick((b"-1", b"0", b"1e300", b"1e15"))),
        "no time at all": _with("at", pick((b'"yesterday"', b"true", b"{}"))),
    }


WRONG = (
    ("who", b"[1]"), ("who", b"true"), ("who", b"1.5"), ("what", b"{}"), ("what", b"2.5"),
    ("amount", b'"12"'), ("amount", b"true"), ("amount", b"[]"), ("id", b'"x"'), ("at", b"[]"),
)  # fmt: skip


def _good() -> bytes:
    return json.dumps({"who": "e1", "at": AT, "what": "c1", "amount": 1.0, "id": 1}).encode()


def _with(key: str, value: bytes) -> bytes:
    """A good record but for one value."""
    fields: dict[str, Any] = json.loads(_good())
    parts = [
        b'"%s": %s' % (name.encode(), value if name == key else json.dumps(there).encode())
        for name, there in fields.items()
    ]
    return b"{" + b", ".join(parts) + b"}"


def sorts_of_images(rng: random.Random) -> dict[str, bytes]:
    """One of each, for a stream of images."""
    good, pick = image(rng), rng.choice
    header = good.index(b"IHDR")
    size = struct.pack(">II", *pick(((60_000, 60_000), (30_000, 1))))
    told = b"IHDR" + size + good[header + 12 : header + 17]
    wide = good[:header] + told + struct.pack(">I", zlib.crc32(told)) + good[header + 21 :]
    return {
        "empty": b"",
        "bytes": rng.randbytes(rng.randrange(1, 200)),
        "truncated": good[: rng.randrange(9, len(good) - 20)],
        "too many pixels": wide,
        "20 MB": good + b"\0" * (20 << 20),
        "a page": b"<!DOCTYPE html><html></html>",
        "a drawing": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "a GIF": b"GIF89a" + rng.randbytes(40),
        "a TIFF": b"II*\0" + rng.randbytes(40),
        "a URI": b'{"uri": "file:///etc/passwd"}',
        "no URI": b"{}",
        "not JSON": b'{"uri": ',
    }


def poisoned(of: Service, rounds: int, seed: int) -> Outcome:
    """In each round one of every sort among good ones; each must be a dead letter, and no other record."""
    rng, outcome = random.Random(seed), Outcome("1% poison", rounds)
    with of.watched():
        for _ in range(rounds):
            made = sorts_of_images if of.kind == "images" else sorts
            bad = list(made(rng).values())
            rng.shuffle(bad)
            for value in bad:
                before = rng.randrange(EACH)
                of.send(before)
                of.send_bad(value)
                of.send(EACH - before)
            until(of.settled, 120, of)
            until(lambda: letters(of) >= of.bad, 60, of)
    return compare(of, outcome)

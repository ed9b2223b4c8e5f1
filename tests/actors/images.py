"""Files of images, whole and broken, and a decoder of them, for the tests."""

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from actors.decode import BadRecord, DecodeConfig, make_decoder
from actors.decode_images import ImageDecoder
from actors.ports import Headers
from schemas.records import Decoded, ImageRows
from schemas.stream import ImageConfig, StreamConfig

SIDE = 8
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def stream(time_unit: str = "auto", time: str = "", **image: Any) -> StreamConfig:
    config = ImageConfig(**{"side": SIDE, **image})
    return StreamConfig(kind="image", time=time, time_unit=time_unit, image=config)  # type: ignore[arg-type]


def decoder(decode: DecodeConfig | None = None, **more: Any) -> ImageDecoder:
    found = make_decoder(stream(**more), decode or DecodeConfig())
    assert isinstance(found, ImageDecoder)
    return found


def run(
    what: ImageDecoder,
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Headers] | None = None,
    stamp_ms: int = 1_700_000_000_000,
) -> tuple[Decoded, list[BadRecord]]:
    """Offsets are 5, 7, 9, …; of topic 2."""
    n = len(values)
    stamps = np.full(n, stamp_ms)
    found, bad = what.decode(
        2, np.arange(n) * 2 + 5, stamps, keys or [b"k"] * n, list(values), headers
    )
    assert isinstance(found.rows, ImageRows)
    return found, bad


def pixels(decoded: Decoded, side: int = SIDE) -> np.ndarray:  # type: ignore[type-arg]
    """[N, S, S, 3]"""
    assert isinstance(decoded.rows, ImageRows)
    return decoded.rows.pixels.reshape(-1, side, side, 3)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def plain(mode: str, colour: Any, size: tuple[int, int] = (50, 30)) -> Image.Image:
    return Image.new(mode, size, colour)


def quarters(size: tuple[int, int] = (40, 24)) -> Image.Image:
    """Red and green above, blue and white below."""
    image, (w, h) = Image.new("RGB", size), (size[0] // 2, size[1] // 2)
    for at, colour in (((0, 0), RED), ((w, 0), GREEN), ((0, h), BLUE), ((w, h), WHITE)):
        image.paste(colour, (*at, at[0] + w, at[1] + h))
    return image


def noise(size: tuple[int, int] = (60, 44), seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


def png(
    size: tuple[int, int],
    raw: bytes,
    depth: int = 8,
    kind: int = 2,
    between: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG of these bytes, filters included, compressed or not as they come, with chunks before them."""
    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *between, (b"IDAT", raw), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def deep(value: int, kind: int, channels: int) -> bytes:
    """A PNG of 16 bits a channel, all of this value."""
    row = b"\0" + struct.pack(">H", value) * channels * 4
    return png((4, 4), zlib.compress(row * 4), 16, kind)


def zeros(n: int) -> bytes:
    """So many, compressed a thousandfold."""
    packer = zlib.compressobj(9)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(n >> 20)) + packer.flush()


def webp_of(size: tuple[int, int], form: bytes) -> bytes:
    """The first chunk of a WebP, which says that it is so large."""
    w, h = size
    body = {
        b"VP8X": struct.pack("<I", 0) + (w - 1).to_bytes(3, "little") + (h - 1).to_bytes(3, "little"),
        b"VP8L": b"\x2f" + struct.pack("<I", (w - 1) | (h - 1) << 14) + bytes(16),
        b"VP8 ": b"\x30\x01\x00\x9d\x01\x2a" + struct.pack("<HH", w, h) + bytes(16),
    }[form]  # fmt: skip
    chunk = form + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def jpeg_of(size: tuple[int, int]) -> bytes:
    """A JPEG whose header says that it is so large."""
    data = bytearray(saved(plain("RGB", RED), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", size[1], size[0])
    return bytes(data)


def many_scans(n: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = saved(plain("RGB", RED), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * n + data[-2:]

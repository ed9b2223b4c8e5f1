"""Encoded images -> S × S pixels of RGB. Needs Pillow and NumPy alone.

What is allowed is looked at in the file's header, before anything is decoded. Pillow's plugins are called
directly: `Image.open` would try others too, and its check of sizes, a global, would warn beside ours."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from actors.rejected import Rejected
from schemas.records import U8
from schemas.stream import CHANNELS, ImageConfig, ImageFormat

OPENERS: dict[ImageFormat, type[ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
}
MOST_SCANS = 100
"""Of a JPEG: progressive ones have about ten, and each passes over all of the image."""
SCAN = b"\xff\xda"
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""


def checked(data: bytes, config: ImageConfig) -> ImageFile:
    """The image of a file, nothing of it decoded yet. Raises Rejected where it is not allowed, and whatever
    Pillow raises where it is damaged."""
    form = format_of(data)
    if form not in config.formats:
        found = f"a {form} image" if form else f"{len(data)} bytes that begin with {data[:12]!r}"
        raise Rejected("image_format", f"{found}; stream.image.formats are {config.formats}")
    if form == "webp":  # its canvas is allocated as it is opened
        _check_size(webp_size(data), config)
    if form == "jpeg" and (scans := data.count(SCAN)) > MOST_SCANS:
        raise Rejected("bad_image", f"a JPEG of {scans} scans; at most {MOST_SCANS} are read")
    image = OPENERS[form](BytesIO(data))
    _check_size(image.size, config)
    return image


def shrunk(image: ImageFile, side: int) -> U8:
    """The whole picture as side × side pixels, as IMAGES_RULE says. [side·side·3]"""
    image.draft(None, (2 * side, 2 * side))  # a JPEG is decoded at 1/8, 1/4, 1/2 or all of its size
    image.load()
    upright = UPRIGHT.get(_orientation(image))
    plain: Image.Image = image
    if image.mode.startswith("I"):  # 16 bits of grey
        plain = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    else:
        mode = "RGBA" if image.has_transparency_data else "L" if image.mode == "L" else "RGB"
        if image.mode != mode:  # else `convert` makes a copy
            plain = image.convert(mode)
    small = plain.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    if small.mode == "RGBA":
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small)
    if upright is not None:
        small = small.transpose(upright)
    return np.asarray(small.convert("RGB")).reshape(-1)


def pixels_of(data: bytes, side: int) -> U8:
    """The pixels of a JPEG, PNG or WebP file that is trusted. [side·side·3]"""
    form = format_of(data)
    if form is None:
        raise Rejected("image_format", f"{len(data)} bytes that begin with {data[:12]!r}")
    return shrunk(OPENERS[form](BytesIO(data)), side)


def resized(pixels: U8, before: Sequence[int], now: Sequence[int]) -> U8:
    """Pixels [N, P] of other sides: what is there of a side as it is; else the largest, resized."""
    ends = np.cumsum([CHANNELS * side**2 for side in before])
    there = dict(zip(before, np.split(pixels, ends[:-1], axis=1), strict=True))
    largest = max(before)
    for side in now:
        if side not in there:
            square = there[largest].reshape(-1, largest, largest, CHANNELS)
            small = (
                Image.fromarray(one).resize((side, side), Image.Resampling.BILINEAR)
                for one in square
            )
            made = [np.asarray(one).reshape(-1) for one in small]
            there[side] = np.array(made, np.uint8).reshape(len(pixels), -1)
    return np.concatenate([there[side] for side in now], axis=1)


def format_of(data: bytes) -> ImageFormat | None:
    """By its first bytes, whatever it calls itself."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return None


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height by a WebP's first chunk.

    Source: RFC 9649, 2.5 (VP8), 2.6 (VP8L), 2.7 (VP8X)."""
    if len(data) < 30:
        raise Rejected("bad_image", f"a WebP of {len(data)} bytes")
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if data[12:16] == b"VP8 ":
        width, height = (int.from_bytes(data[at : at + 2], "little") for at in (26, 28))
        return width & 0x3FFF, height & 0x3FFF
    raise Rejected("bad_image", f"a WebP whose first chunk is {data[12:16]!r}")


def _check_size(size: tuple[int, int], config: ImageConfig) -> None:
    width, height = size
    if max(size) > config.max_side:
        key, limit = "max_side", config.max_side
    elif width * height > config.max_pixels:
        key, limit = "max_pixels", config.max_pixels
    else:
        return
    reason = f"{width} x {height} pixels; stream.image.{key} is {limit}"
    raise Rejected("image_too_large", reason)


def _orientation(image: Image.Image) -> int:
    """Of an image that is loaded; 1 (upright) also where its EXIF cannot be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1

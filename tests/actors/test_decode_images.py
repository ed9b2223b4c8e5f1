"""Files of images -> pixels: every kind of picture, and everything that is none."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from actors.pixels import UPRIGHT, pixels_of
from tests.actors import images
from tests.actors.images import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    decoder,
    deep,
    jpeg_of,
    many_scans,
    noise,
    pixels,
    plain,
    png,
    quarters,
    run,
    saved,
    webp_of,
    zeros,
)  # fmt: skip

ROOT = Path(__file__).parents[2]
PURPLE, HALF = (200, 0, 100), (227, 127, 177)
"""A colour, and what is seen where half of it is on white."""


# -- pictures -----------------------------------------------------------------------------------------


def _animated(form: str) -> bytes:
    frames = [plain("RGB", BLUE), plain("RGB", RED)]
    return saved(plain("RGB", PURPLE), form, save_all=True, append_images=frames, lossless=True)


def _indexed(**options: Any) -> bytes:
    image = plain("P", 1)
    image.putpalette([0, 0, 0, *PURPLE])
    return saved(image, "PNG", **options)


PICTURES = {
    "JPEG": (saved(plain("RGB", PURPLE), "JPEG", quality=100), PURPLE),
    "progressive JPEG": (saved(plain("RGB", PURPLE), "JPEG", quality=100, progressive=True), PURPLE),
    "grey JPEG": (saved(plain("L", 90), "JPEG", quality=100), (90, 90, 90)),
    "CMYK JPEG, as Adobe inverts it": (
        saved(plain("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), RED,
    ),
    "PNG": (saved(plain("RGB", PURPLE), "PNG"), PURPLE),
    "black and white PNG": (saved(plain("1", 1), "PNG"), WHITE),
    "grey PNG": (saved(plain("L", 90), "PNG"), (90, 90, 90)),
    "grey PNG with alpha": (saved(plain("LA", (0, 127)), "PNG"), (128, 128, 128)),
    "PNG with alpha": (saved(plain("RGBA", (*PURPLE, 128)), "PNG"), HALF),
    "clear PNG": (saved(plain("RGBA", (*PURPLE, 0)), "PNG"), WHITE),
    "PNG with one clear colour": (saved(plain("RGB", PURPLE), "PNG", transparency=PURPLE), WHITE),
    "palette PNG": (_indexed(), PURPLE),
    "palette PNG with alpha": (_indexed(transparency=bytes([255, 128])), HALF),
    "grey PNG of 16 bits": (deep(0x80FF, 0, 1), (128, 128, 128)),
    "PNG of 16 bits": (deep(0x40FF, 2, 3), (64, 64, 64)),
    "PNG of 16 bits with alpha": (deep(0x80FF, 6, 4), (191, 191, 191)),
    "APNG": (_animated("PNG"), PURPLE),
    "WebP": (saved(plain("RGB", PURPLE), "WEBP", lossless=True), PURPLE),
    "WebP with alpha": (saved(plain("RGBA", (*PURPLE, 128)), "WEBP", lossless=True), HALF),
    "lossy WebP": (saved(plain("RGB", PURPLE), "WEBP", quality=100), PURPLE),
    "animated WebP": (_animated("WEBP"), PURPLE),
    "1 x 1": (saved(plain("RGB", PURPLE, (1, 1)), "PNG"), PURPLE),
    "20,000 x 1": (saved(plain("RGB", PURPLE, (20_000, 1)), "PNG"), PURPLE),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_of_picture_becomes_rgb(name: str) -> None:
    data, colour = PICTURES[name]
    found, bad = run(decoder(), [data])
    assert not bad
    np.testing.assert_allclose(pixels(found)[0], np.broadcast_to(colour, (8, 8, 3)), atol=2)


@pytest.mark.parametrize("orientation", [1, *UPRIGHT])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_as_its_exif_says(form: str, orientation: int) -> None:
    """Each way of turning, but for the two quarter turns, is undone by itself."""
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = quarters()
    if orientation > 1:
        stored = stored.transpose(back.get(orientation) or UPRIGHT[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    found, bad = run(decoder(), [saved(stored, form, quality=100, lossless=True, exif=exif)])
    assert not bad
    corners = pixels(found)[0][[0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_allclose(corners, [RED, GREEN, BLUE, WHITE], atol=8)


def test_exif_that_cannot_be_read_turns_nothing() -> None:
    data = saved(quarters(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    found, bad = run(decoder(), [data])
    assert not bad
    assert pixels(found)[0][0, 0].tolist() == list(RED)


def test_the_whole_picture_is_kept() -> None:
    """Its sides are squeezed, nothing is cut off."""
    found, _ = run(decoder(), [saved(quarters((400, 20)), "PNG")])
    np.testing.assert_array_equal(pixels(found)[0][[0, 0, -1, -1], [0, -1, 0, -1]],
                                  [RED, GREEN, BLUE, WHITE])  # fmt: skip


@pytest.mark.parametrize("side", [8, 32, 200])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_anyone_with_pillow_gets_the_same_pixels(form: str, side: int) -> None:
    """The rule of the manifest, told by Pillow's own `open`."""
    data = saved(noise((300, 170)), form)
    with Image.open(images.BytesIO(data)) as image:
        image.draft(None, (2 * side, 2 * side))
        small = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR, None, 2.0)
    found, _ = run(decoder(side=side), [data])
    np.testing.assert_array_equal(pixels(found, side)[0], np.asarray(small))
    np.testing.assert_array_equal(pixels(found, side)[0].ravel(), pixels_of(data, side))


# -- what is no picture -------------------------------------------------------------------------------

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
LARGE = (30_000, 30_000)
REFUSED = {
    "nothing": (b"", "image_format"),
    "any bytes": (bytes(range(256)), "image_format"),
    "HTML": (b"<!doctype html><p>404", "image_format"),
    "SVG": (SVG, "image_format"),
    "TIFF": (saved(plain("RGB", RED), "TIFF"), "image_format"),
    "GIF": (saved(plain("P", 1), "GIF"), "image_format"),
    "BMP": (saved(plain("RGB", RED), "BMP"), "image_format"),
    "only the magic of a JPEG": (b"\xff\xd8\xff", "bad_image"),
    "only the magic of a PNG": (b"\x89PNG\r\n\x1a\n", "bad_image"),
    "only the magic of a WebP": (b"RIFF\x04\0\0\0WEBP", "bad_image"),
    "a WebP of something else": (webp_of((9, 9), b"VP8X").replace(b"VP8X", b"ALPH"), "bad_image"),
    "a JPEG of many scans": (many_scans(200), "bad_image"),
    "a PNG of no width": (png((0, 5), zlib.compress(b"\0" * 5)), "bad_image"),
    "a PNG of too little": (png((50, 50), zlib.compress(b"\0" * 5)), "bad_image"),
    "a PNG that is not deflated": (png((5, 5), b"\0" * 99), "bad_image"),
    "30,000 x 1": (saved(plain("RGB", RED, (30_000, 1)), "PNG"), "image_too_large"),
    "a PNG that says it is large": (png(LARGE, zlib.compress(b"")), "image_too_large"),
    "a JPEG that says it is large": (jpeg_of(LARGE), "image_too_large"),
    "a WebP that says it is large": (webp_of((16_384, 16_384), b"VP8X"), "image_too_large"),
    "a lossless WebP that says so": (webp_of((16_384, 16_384), b"VP8L"), "image_too_large"),
    "a lossy WebP that says so": (webp_of((16_383, 16_383), b"VP8 "), "image_too_large"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_a_dead_letter(name: str) -> None:
    data, error = REFUSED[name]
    good = PICTURES["PNG"][0]
    found, bad = run(decoder(), [good, data, good])
    assert [(b.at, b.error) for b in bad] == [(1, error)], bad
    assert (found.rows.position & 0xFF).tolist() == [5, 9]
    assert (pixels(found) == PURPLE).all()


def test_sizes_are_bounded_to_the_pixel() -> None:
    limits: dict[str, Any] = {"max_pixels": 50 * 30, "max_side": 50}
    for size, fits in (((50, 30), True), ((50, 31), False), ((51, 9), False), ((9, 51), False)):
        for form in ("JPEG", "PNG", "WEBP"):
            _, bad = run(decoder(**limits), [saved(plain("RGB", RED, size), form)])
            assert [b.error for b in bad] == ([] if fits else ["image_too_large"])


@pytest.mark.parametrize("form", ["jpeg", "png", "webp"])
def test_only_the_formats_that_are_named_are_read(form: str) -> None:
    values = [saved(plain("RGB", RED), name) for name in ("JPEG", "PNG", "WEBP")]
    found, bad = run(decoder(formats=(form,)), values)
    assert len(found.entities) == 1
    assert {b.error for b in bad} == {"image_format"}
    assert len(bad) == 2


WHOLE = [
    saved(noise(), "JPEG"),
    saved(noise(), "JPEG", progressive=True),
    saved(noise(), "PNG"),
    saved(noise().quantize(16), "PNG"),
    saved(noise(), "WEBP"),
    saved(noise(), "WEBP", lossless=True),
    _animated("WEBP"),
    _animated("PNG"),
]
SHARED = decoder()


@given(data=st.sampled_from(WHOLE), share=st.floats(0, 1))
@settings(max_examples=300)
def test_what_was_cut_off_is_refused_or_has_all_its_pixels(data: bytes, share: float) -> None:
    found, bad = run(SHARED, [data[: int(share * len(data))]])
    assert {b.error for b in bad} <= {"bad_image", "image_format"}
    for part in pixels(found):
        np.testing.assert_array_equal(part.ravel(), SHARED.pixels(data))


@given(
    data=st.sampled_from(WHOLE),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(max_examples=300)
def test_damage_ends_nothing(data: bytes, changes: list[tuple[float, int]]) -> None:
    broken = bytearray(data)
    for share, byte in changes:
        broken[int(share * (len(data) - 1))] = byte
    found, bad = run(SHARED, [bytes(broken), data])
    assert len(found.entities) + len(bad) == 2
    np.testing.assert_array_equal(pixels(found)[-1].ravel(), SHARED.pixels(data))


# -- memory -------------------------------------------------------------------------------------------

CHILD = """
import json, sys
from pathlib import Path
from tests.actors.images import decoder, run
def peak():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x[:5] == "VmHWM")
    return int(line.split()[1]) << 10
values = [Path(name).read_bytes() for name in sys.argv[1:]]
what = decoder(threads=2)
run(what, [values[0][:40]])
before = peak()
_, bad = run(what, values)
print(json.dumps([[b.error for b in bad], peak() - before]))
"""


def grown(folder: Path, values: list[bytes]) -> tuple[list[str], int]:
    """Reasons, and the bytes that a process needed to find them."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is read from /proc")
    paths = []
    for at, value in enumerate(values):
        paths.append(folder / str(at))
        paths[-1].write_bytes(value)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD, *paths],
        env=environment, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    errors, most = json.loads(done.stdout)
    return errors, most


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    bomb = zeros(256 << 20)
    small = zlib.compress(b"\0" * 31 * 10)
    values = [
        png(LARGE, bomb),
        png((10, 10), bomb),  # decoded as far as it is a picture
        png((10, 10), small, between=[(b"zTXt", b"Comment\0\0" + bomb)]),
        png((10, 10), small, between=[(b"iTXt", b"Comment\0\1\0\0\0" + bomb)]),
        png((10, 10), small, between=[(b"iCCP", b"profile\0\0" + bomb)]),
        png((10, 10), small, between=[(b"zTXt", b"Comment\0\0" + zeros(1 << 20))] * 200),
        jpeg_of((65_500, 65_500)),
        webp_of((16_384, 16_384), b"VP8X"),
        webp_of((16_384, 16_384), b"VP8L"),
    ]
    errors, most = grown(tmp_path, values)
    assert errors == [
        "image_too_large", *["bad_image"] * 4, *["image_too_large"] * 3,
    ]  # fmt: skip
    assert most < 100 << 20  # 64 MiB of texts are read of one PNG


def test_no_more_images_are_decoded_at_once_than_there_are_threads(tmp_path: Path) -> None:
    one = 4 * 2500 * 2500
    errors, most = grown(tmp_path, [saved(plain("RGB", RED, (2500, 2500)), "PNG")] * 12)
    assert not errors
    assert most < 3 * one


def test_nothing_is_kept_of_images_that_could_not_be_decoded(tmp_path: Path) -> None:
    """An error's traceback holds the image at its full size."""
    one = 4 * 2500 * 2500
    cut = [saved(noise((25, 25)).resize((2500, 2500), Image.Resampling.NEAREST), "PNG")[:-1000]]
    errors, most = grown(tmp_path, cut * 12)
    assert errors == ["bad_image"] * 12
    assert most < 4 * one

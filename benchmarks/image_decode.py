"""Images per second from bytes to pixels: small and larger JPEGs, with one thread and with two."""

import time
from io import BytesIO

import numpy as np
from PIL import Image

from actors.decode import DecodeConfig, make_decoder
from benchmarks.items import Item, shown
from schemas.stream import ImageConfig, StreamConfig

BATCH, SECONDS = 256, 3.0
KINDS = ((32, 32), (512, 32), (512, 64))
"""Side of the pictures, and S."""


def picture(side: int, seed: int) -> bytes:
    """A JPEG of a gradient with noise on it, of about the size that a photograph has."""
    rng = np.random.default_rng(seed)
    across, down = np.meshgrid(np.linspace(0, 255, side), np.linspace(0, 255, side))
    colours = np.stack([across, down, 255 - across], -1) + rng.normal(0, 12, (side, side, 3))
    out = BytesIO()
    image = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


def rate(values: list[bytes], side: int, threads: int) -> float:
    """Images per second of the best of five stretches: others may be at work here."""
    image = ImageConfig(side=side, threads=threads)
    decoder = make_decoder(StreamConfig(kind="image", image=image), DecodeConfig())
    offsets, stamps = np.arange(len(values)), np.full(len(values), 1_700_000_000_000)
    keys: list[bytes | None] = [b"entity"] * len(values)
    best = 0.0
    for _ in range(5):
        began, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < SECONDS / 5:
            found, bad = decoder.decode(0, offsets, stamps, keys, values)
            assert not bad
            done += len(found.entities)
        best = max(best, done / spent)
    decoder.close()
    return best


def measure() -> list[Item]:
    found = []
    for of, side in KINDS:
        values = [picture(of, seed) for seed in range(BATCH if of < 100 else BATCH // 8)]
        size = sum(map(len, values)) / len(values) / 1000
        one, two = rate(values, side, 1), rate(values, side, 2)
        name = f"decode of {of} x {of} JPEGs ({size:.1f} kB) to {side} x {side}"
        found.append(shown(f"{name}, 1 thread", one, "images/s"))
        found.append(shown(f"{name}, 2 threads", two, "images/s"))
    return found

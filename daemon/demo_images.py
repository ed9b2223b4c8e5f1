"""The demo's images: 1,797 handwritten digits, from scikit-learn, and which of them the vectors find alike."""

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from daemon.demo_report import chance, share
from daemon.reading import Reader
from daemon.settings import Settings
from schemas.records import F32, U8

NEAREST = 3
SHADES = " ░▒▓█"
RANDOM_SEEDS = 3


class Digit(NamedTuple):
    name: str
    label: str  # which digit it is; the encoder does not see it
    pixels: U8  # [8, 8] grey
    png: bytes


def digits() -> list[Digit]:
    """In an order of their own. Source: UCI, Optical Recognition of Handwritten Digits, CC BY 4.0."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    out = []
    for at in np.random.default_rng(0).permutation(len(found.images)).tolist():
        pixels = np.rint(found.images[at] * (255 / 16)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        out.append(Digit(f"digit-{at:04d}", str(found.target[at]), pixels, file.getvalue()))
    return out


class ImageReport:
    def __init__(self, settings: Settings, sent: list[Digit]) -> None:
        self._settings, self._digits = settings, {d.name: d for d in sent}
        names, vectors = Reader(settings).everything()
        self._shown = [self._digits[name] for name in names]
        self._vectors = vectors

    def nearest(self, facts: Mapping[str, Any]) -> Table:
        """One digit and those whose vectors are nearest to its, as pictures."""
        mine = min(range(len(self._shown)), key=lambda i: self._shown[i].name)
        cosine = self._vectors @ self._vectors[mine]
        best = np.argsort(-cosine)[: NEAREST + 1].tolist()
        seen = f"{len(self._shown):,}, after {facts['updates']:,} updates"
        title = f"Digits nearest to {self._shown[mine].name} of {seen}"
        table = Table(title=title, title_justify="left")
        for i in best:
            digit = self._shown[i]
            table.add_column(
                f"a {digit.label}" if i == mine else f"a {digit.label}, {cosine[i]:.3f}"
            )
        table.add_row(*(drawn(self._shown[i].pixels) for i in best))
        return table

    def comparison(self) -> Table:
        """Shares of neighbours that are the same digit."""
        labels = np.array([d.label for d in self._shown])
        raw = np.stack([d.pixels.ravel() for d in self._shown]).astype(np.float32)
        random = [share(v, labels) for v in self._random()]
        table = Table(
            "vectors of an image", "same digit among 10 nearest",
            title=f"Do vectors know which digit it is? ({len(labels):,} images, no labels)",
        )  # fmt: skip
        table.add_row("afresh, learnt from the stream", f"{share(self._vectors, labels):.3f}")
        table.add_row("the pixels themselves", f"{share(raw - raw.mean(0), labels):.3f}")
        spread = (max(random) - min(random)) / 2
        table.add_row("the same encoder, untrained", f"{np.mean(random):.3f} ± {spread:.3f}")
        table.add_row("chance", f"{chance(labels):.3f}")
        return table

    def _random(self) -> list[F32]:
        """Vectors of encoders that saw no update."""
        from actors.decode import make_decoder
        from learning.compatibility import untrained_vectors
        from schemas.records import Windows

        s, n = self._settings, len(self._shown)
        decoder = make_decoder(s.stream, s.decode)
        offsets = np.arange(n)
        names: list[bytes | None] = [d.name.encode() for d in self._shown]
        decoded, _ = decoder.decode(0, offsets, offsets + 1, names, [d.png for d in self._shown])
        rows, totals = decoded.rows, np.zeros((n, s.stream.shape.totals))
        windows = Windows(rows, np.arange(n + 1), totals, rows.time_us, offsets)
        return [
            untrained_vectors(s.encoder, s.stream.shape, windows, seed)
            for seed in range(RANDOM_SEEDS)
        ]


def drawn(pixels: U8) -> str:
    """An image of grey as characters, two wide for each pixel, for a character is half as wide as it is high."""
    shade = (pixels.astype(np.int64) * len(SHADES)) >> 8
    return "\n".join("".join(SHADES[x] * 2 for x in line) for line in shade.tolist())

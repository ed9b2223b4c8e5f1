"""Images of another side: the old generation is made of its own pixels until the new one is filled."""

import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from actors.cut import Cut, columns, set_learner_aside, wide
from actors.encode import Release
from actors.pixels import pixels_of, resized
from actors.served import Served, set_served
from actors.shard import Shard
from schemas.errors import ReleaseError
from schemas.records import U8
from schemas.stream import ImageConfig, StreamConfig
from tests.actors.test_generations import fill, filled, switch
from tests.actors.test_images import Lab
from tests.fakes import Record
from tests.images import SIDE, STREAM, make_release, vector
from tests.services import adopt, settle

OLD, NEW, WIDER = 1, 2, 12


def noisy(colour: tuple[int, int, int], seed: int) -> bytes:
    """A PNG of 24 × 24 pixels around a colour."""
    noise = np.random.default_rng(seed).integers(-9, 10, (24, 24, 3))
    file = io.BytesIO()
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


class Gallery:
    """A stream of images whose side changes, and what was put into it."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        self.folder, self.files = folder, dict[str, bytes]()
        self.before, self.after = (
            msgspec.structs.replace(STREAM, image=ImageConfig(side=side, **keys))
            for side in (SIDE, WIDER)
        )
        make_release(folder / "releases", NEW, 1, self.after, generation=2)
        make_release(folder / "releases", OLD, 1, self.before)
        set_served(folder / "releases", Served(OLD, 1))
        self.lab = Lab(folder, stream=self.before)
        adopt(self.lab.shard)

    def put(self, who: str, at: int, *, uri: str = "") -> None:
        rng = np.random.default_rng(at)
        data = noisy(tuple(rng.integers(20, 230, 3).tolist()), at)
        value = data
        if uri:
            (self.folder / f"{at}.png").write_bytes(data)
            value = msgspec.json.encode({"uri": f"{uri}{at}.png"})
        self.files[who] = data
        self.lab.put(Record(value, who.encode(), headers=[("time", b"%d" % (10 + at))]))

    def change(self) -> Shard:
        """Restarts with the other side, as a daemon does."""
        lab = self.lab
        lab.shard.drain()
        lab.stream = wide(self.after, self.folder / "releases")
        lab.shard = lab.open()
        lab.shard.offers.cut = Cut.of(columns(self.after), columns(lab.stream))
        adopt(lab.shard)
        settle(lab.shard)
        return lab.shard

    def kept(self, who: str) -> U8:
        state = self.lab.shard.groups[0].state
        return np.asarray(state.rows.pixels[state.index[who], 0])  # type: ignore[attr-defined]

    def check(self, generation: int, release: int, who: str, pixels: U8) -> None:
        mean = pixels.reshape(-1, 3).mean(0)
        found: Any = self.lab.server.entities[generation, who]
        np.testing.assert_allclose(found.vector, vector(release, tuple(mean)), atol=1e-5)


def test_pixels_that_are_kept_are_resized_beside_the_old_ones(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    for at in range(12):
        gallery.put(f"e{at % 5}", at)
    early = dict(gallery.files)
    shard = gallery.change()
    assert gallery.lab.stream.shape.sides == (WIDER, SIDE)
    fill(tmp_path, shard)
    filled(shard)
    for at in range(12, 15):
        gallery.put(f"e{at}", at)
    filled(shard)
    for who, data in gallery.files.items():
        old, new = pixels_of(data, SIDE), pixels_of(data, WIDER)
        if who in early:
            new = resized(old[None], [SIDE], [WIDER])[0]
        np.testing.assert_array_equal(gallery.kept(who), np.concatenate([new, old]), who)
        gallery.check(1, OLD, who, old)
        gallery.check(2, NEW, who, new)
    seen: Any = gallery.lab.learner.windows[-1].rows
    np.testing.assert_array_equal(seen.pixels[-1], pixels_of(gallery.files["e14"], WIDER))
    switch(tmp_path, shard)
    shard = gallery.change()
    assert gallery.lab.stream == gallery.after
    assert gallery.kept("e0").shape == (3 * WIDER**2,)
    with pytest.raises(ReleaseError, match="reads images of 8 × 8 pixels, which rows have no more"):
        Release.load(tmp_path / "releases" / "1", there=columns(gallery.after))
    gallery.put("e0", 20)
    gallery.check(2, NEW, "e0", pixels_of(gallery.files["e0"], WIDER))


def test_images_behind_uris_are_fetched_again(tmp_path: Path) -> None:
    root = f"file://{tmp_path}/"
    gallery = Gallery(tmp_path, keep="uri", uri_roots=(root,))
    for at in range(6):
        gallery.put(f"e{at % 4}", at, uri=root)
    shard = gallery.change()
    fill(tmp_path, shard)
    filled(shard)
    gallery.put("e1", 7, uri=root)
    filled(shard)
    for who, data in gallery.files.items():
        gallery.check(1, OLD, who, pixels_of(data, SIDE))
        gallery.check(2, NEW, who, pixels_of(data, WIDER))


def test_of_what_is_not_kept_the_next_image_is_the_first(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path, keep="nothing")
    for at in range(6):
        gallery.put(f"e{at % 4}", at)
    shard = gallery.change()
    fill(tmp_path, shard)
    filled(shard)
    gallery.check(1, OLD, "e0", pixels_of(gallery.files["e0"], SIDE))
    switch(tmp_path, shard)
    gallery.put("e0", 9)
    gallery.check(2, NEW, "e0", pixels_of(gallery.files["e0"], WIDER))
    assert (2, "e3") not in gallery.lab.server.entities


def test_resized_images_are_like_those_of_that_side() -> None:
    files = [noisy((30 * i, 200 - 20 * i, 99), i) for i in range(5)]
    old, new = (np.stack([pixels_of(f, side) for f in files]) for side in (24, 10))
    found = resized(old, [24], [10, 24])
    np.testing.assert_array_equal(found[:, 300:], old)
    assert np.abs(found[:, :300].astype(int) - new).max() <= 2


def test_a_learner_of_another_side_or_other_fields_is_set_aside(tmp_path: Path) -> None:
    learner = tmp_path / "learner"
    stream = StreamConfig(kind="image", image=ImageConfig(side=16))
    assert set_learner_aside(tmp_path, stream) is None
    (learner / "fields").write_text("label")  # as it was written before it said the side
    assert set_learner_aside(tmp_path, stream) is None
    (learner / "1-1").mkdir()
    wider = msgspec.structs.replace(stream, image=ImageConfig(side=32))
    aside = set_learner_aside(tmp_path, wider)
    assert aside is not None and (aside / "1-1").exists() and not (learner / "1-1").exists()
    assert set_learner_aside(tmp_path, wider) is None
    again = set_learner_aside(tmp_path, stream)
    aside.rename(tmp_path / "away")  # an operator's hand
    for each in (wider, stream):
        assert again is not None
        again = set_learner_aside(tmp_path, each)
    assert len(list(tmp_path.glob("learner.before-*"))) == 3

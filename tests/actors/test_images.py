"""Streams of images in a shard: what is encoded when, and what readers find."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from actors.duplicates import LEAST, Duplicates
from actors.graphs import in_parts
from actors.images import Images
from actors.learn import resident_windows
from actors.ports import LearnerPort
from actors.shard import Shard
from actors.shard_config import ShardConfig
from schemas.records import Rows, Told, Windows
from schemas.stream import ImageConfig, StreamConfig
from tests.fake_sink import MemoryServer
from tests.fakes import MemorySource, Record
from tests.images import DIM, STREAM, image, make_release, mean, pixels, png, vector
from tests.services import adopt, deletion, make_shard, settle

RED, GREEN, BLUE, GREY = (200, 20, 10), (10, 190, 30), (5, 15, 210), (90, 91, 92)
KEEPS: list[Any] = ["pixels", "nothing"]


class Learner(LearnerPort):
    """Takes all that it is given, but for what lies below its mark, as the real one."""

    def __init__(self) -> None:
        self.windows: list[Windows] = []
        self.processes = 1
        self._marks: dict[int, list[int]] = {}

    def offer(self, group: int, positions: list[int], windows: Windows) -> bool:
        mark = self._marks.get(group)
        if mark is None or any(map(int.__gt__, positions, mark)):
            self.windows.append(windows)
            self._marks[group] = positions
        return True

    def poll(self) -> None: ...

    def describe(self, told: Told) -> bool:
        return bool(len(told))

    def forget(self, entities: list[int]) -> int:
        return len(entities)


def stream_of(**image_keys: Any) -> StreamConfig:
    return msgspec.structs.replace(
        STREAM, image=msgspec.structs.replace(STREAM.image, **image_keys)
    )


class Lab:
    """A shard of images, which can be killed and opened again."""

    def __init__(
        self,
        folder: Path,
        window: int = 1,
        stream: StreamConfig = STREAM,
        topics: tuple[str, ...] = ("photos",),
    ) -> None:
        self.folder, self.window, self.anchor, self.stream = folder, window, 0, stream
        self.source, self.server, self.learner = MemorySource((), topics), MemoryServer(), Learner()
        self.restarts = 0
        self.shard = self.open()

    def open(self) -> Shard:
        shard = make_shard(
            self.folder, self.source, self.server, self.restarts, ShardConfig(snapshot_every_s=1e-9),
            stream=self.stream, sizes=(self.window, DIM, 512, 0, self.anchor), learner=self.learner,
        )  # fmt: skip
        self.restarts += 1
        return shard

    def release(self, number: int) -> None:
        make_release(self.folder / "releases", number, self.window, self.stream)
        adopt(self.shard)

    def put(self, *records: Record) -> None:
        self.source.put(*records)
        if self.shard.releases.current is None and self.shard.releases._came is None:
            self.shard.turn()
        else:
            settle(self.shard)

    def found(self, name: str) -> Any:
        return self.server.entities.get((1, name))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_an_entity_has_the_vector_of_its_newest_image_by_time(lab: Lab) -> None:
    lab.release(1)
    lab.put(image("a", 10, RED), image("b", 11, GREEN), image("a", 30, BLUE), image("a", 20, GREEN))
    np.testing.assert_allclose(lab.found("a").vector, vector(1, BLUE), atol=1e-6)
    np.testing.assert_allclose(lab.found("b").vector, vector(1, GREEN), atol=1e-6)
    assert (lab.found("a").count, lab.found("a").time_us) == (3, 30_000_000)


def test_or_the_mean_of_the_vectors_of_its_newest_images(tmp_path: Path) -> None:
    lab = Lab(tmp_path, window=3)
    lab.release(1)
    for at, colour in ((10, RED), (40, BLUE), (20, GREEN)):
        lab.put(image("a", at, colour))
    wanted = mean([vector(1, c) for c in (RED, GREEN, BLUE)])
    np.testing.assert_allclose(lab.found("a").vector, wanted, atol=1e-6)
    lab.put(image("a", 50, GREY), image("a", 5, RED))  # the red one is older than the ring
    wanted = mean([vector(1, c) for c in (GREEN, BLUE, GREY)])
    np.testing.assert_allclose(lab.found("a").vector, wanted, atol=1e-6)
    assert lab.found("a").count == 5


@pytest.mark.parametrize("window", [1, 2])
def test_a_new_release_encodes_kept_pixels_again(tmp_path: Path, window: int) -> None:
    lab = Lab(tmp_path, window)
    lab.put(image("a", 10, RED), image("a", 20, GREEN))  # before the first release
    lab.release(1)
    settle(lab.shard)
    newest = [RED, GREEN][-window:]
    for release in (1, 2):
        if release == 2:
            lab.release(2)
            settle(lab.shard)
        wanted = mean([vector(release, c) for c in newest])
        np.testing.assert_allclose(lab.found("a").vector, wanted, atol=1e-6)
        assert lab.found("a").release == release


def test_of_what_is_not_kept_the_release_tells(tmp_path: Path) -> None:
    lab = Lab(tmp_path, window=2, stream=stream_of(keep="nothing"))
    lab.put(image("early", 5, RED))
    lab.release(1)
    lab.put(image("a", 10, RED), image("a", 20, GREEN), image("b", 10, BLUE))
    assert lab.found("early") is None, "its image came before any release, and was not kept"
    lab.release(2)
    settle(lab.shard)
    assert (lab.found("a").release, lab.found("b").release) == (1, 1)
    lab.put(image("a", 30, BLUE), image("early", 30, GREY))
    np.testing.assert_allclose(lab.found("a").vector, vector(2, BLUE), atol=1e-6)
    assert (lab.found("a").release, lab.found("b").release) == (2, 1)
    np.testing.assert_allclose(lab.found("early").vector, vector(2, GREY), atol=1e-6)
    assert all(
        g.stats(0, 0.0, paused=False).oldest_release == 0 for g in lab.shard.groups.values()
    ), "what can not be encoded again holds no release up"


@pytest.mark.parametrize("window", [1, 2])
def test_a_new_release_fetches_images_again(tmp_path: Path, window: int) -> None:
    """Beside the stream; of what cannot be had the release tells."""
    files = {"red": RED, "green": GREEN, "blue": BLUE}
    for name, colour in files.items():
        (tmp_path / f"{name}.png").write_bytes(png(colour))
    root = f"file://{tmp_path}/"
    image_keys: dict[str, Any] = {"keep": "uri", "uri_roots": (root,), "fetch_tries": 1}
    lab = Lab(tmp_path, window, stream_of(**image_keys))

    def at(who: str, second: int, name: str) -> Record:
        value = msgspec.json.encode({"uri": f"{root}{name}.png"})
        return Record(value, who.encode(), headers=[("time", b"%d" % second)])

    lab.release(1)
    lab.put(at("a", 10, "red"), at("a", 20, "green"), at("b", 10, "blue"), image("c", 10, GREY))
    (tmp_path / "blue.png").unlink()
    lab.release(2)
    settle(lab.shard)
    wanted = mean([vector(2, c) for c in [RED, GREEN][-window:]])
    np.testing.assert_allclose(lab.found("a").vector, wanted, atol=1e-6)
    assert lab.found("a").release == 2
    assert (lab.found("b").release, lab.found("c").release) == (1, 1), "gone; and without a URI"
    lab.release(3)
    lab.put(at("a", 30, "red"))  # as its other image is yet to be fetched
    wanted = mean([vector(3, c) for c in [GREEN, RED][-window:]])
    np.testing.assert_allclose(lab.found("a").vector, wanted, atol=1e-6)


def test_a_new_release_takes_one_entity_at_a_time_where_that_takes_long(lab: Lab) -> None:
    """Else the stream would wait for many runs of a large backbone."""
    names = [f"e{i}" for i in range(40)]
    lab.release(1)
    lab.put(*(image(name, 10 + at, RED) for at, name in enumerate(names)))
    now = [0.0]

    def slow() -> float:
        now[0] += 0.1  # each look at the clock is that much later
        return now[0]

    lab.shard._clock = slow
    lab.release(2)
    behind = []
    for _ in range(20):
        lab.shard.turn()
        behind.append(sum(lab.found(name).release == 1 for name in names))
    assert max(np.diff([40, *behind]) * -1) == 1
    assert behind[-1] < 40


def test_no_more_are_fetched_at_once_than_are_encoded_in_a_turn(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png(RED))
    root = f"file://{tmp_path}/"
    lab = Lab(tmp_path, 2, stream_of(keep="uri", uri_roots=(root,)))
    value = msgspec.json.encode({"uri": f"{root}red.png"})
    lab.release(1)
    lab.put(*(Record(value, b"e%d" % (at // 2), time_ms=1000 + at) for at in range(80)))
    lab.release(2)
    assert lab.shard.images is not None
    lab.shard.images.most = 16
    lab.shard._chunk = 40
    (group,) = lab.shard.groups.values()
    assert group.served.refetch is not None
    lab.shard.turn()
    while group.served.refetch._batch is None:
        lab.shard.turn()
    assert len(group.served.refetch._batch.slots) == 8, "of two images each"
    settle(lab.shard)
    assert all(lab.found(f"e{i}").release == 2 for i in range(40))


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("window", [1, 3])
def test_after_a_restart_each_image_counts_once(tmp_path: Path, keep: Any, window: int) -> None:
    lab = Lab(tmp_path, window, stream_of(keep=keep))
    lab.release(1)
    rng = np.random.default_rng(window)
    colours: dict[str, list[Any]] = {}
    for at in range(60):
        who, colour = f"e{rng.integers(5)}", tuple(rng.integers(0, 256, 3).tolist())
        colours.setdefault(who, []).append(colour)
        lab.source.put(image(who, 10 + at, colour))
        if at % 7 == 0:
            lab.shard.turn(3)
        if at in (23, 41):
            lab.shard.close()
            lab.shard = lab.open()
            adopt(lab.shard)
    settle(lab.shard)
    for who, mine in colours.items():
        assert lab.found(who).count == len(mine)
        wanted = mean([vector(1, c) for c in mine[-window:]])
        np.testing.assert_allclose(lab.found(who).vector, wanted, atol=1e-6)


@pytest.mark.parametrize("keep", KEEPS)
def test_a_redis_that_came_back_empty_is_filled_again(tmp_path: Path, keep: Any) -> None:
    lab = Lab(tmp_path, stream=stream_of(keep=keep))
    lab.release(1)
    lab.put(image("a", 10, RED), image("b", 10, BLUE))
    lab.release(2)
    settle(lab.shard)
    by = lab.found("a").release
    lab.server.entities.clear()
    for group in lab.shard.groups.values():
        group.phase = "starting"
        group.owe_everything()
    settle(lab.shard)
    assert lab.found("a").release == by == (2 if keep == "pixels" else 1)
    np.testing.assert_allclose(lab.found("a").vector, vector(by, RED), atol=1e-6)


def test_a_deleted_entity_is_gone(lab: Lab) -> None:
    lab.release(1)
    lab.put(image("a", 10, RED), image("b", 10, BLUE), deletion("a"))
    assert lab.found("b") is not None
    assert "a" not in next(iter(lab.shard.groups.values())).state.index


def test_each_image_goes_to_the_learner_with_its_pixels(lab: Lab) -> None:
    lab.put(image("a", 10, RED), image("b", 11, GREEN), image("a", 12, BLUE))
    rows: Any = lab.learner.windows[0].rows
    np.testing.assert_array_equal(rows.pixels, pixels([RED, GREEN, BLUE]))
    assert len(lab.learner.windows[0]) == 3
    assert rows.vector.shape == (3, 0)


def test_copies_neither_train_nor_are_written_again(tmp_path: Path) -> None:
    lab = Lab(tmp_path, stream=stream_of(duplicate=0.05))
    lab.release(1)
    rng = np.random.default_rng(0)
    some = [tuple(c) for c in rng.integers(90, 110, (3 * LEAST, 3)).tolist()]
    lab.put(*(image(f"e{i}", 10 + i, c) for i, c in enumerate(some)))
    trained = sum(map(len, lab.learner.windows))
    odd = (255, 0, 0)
    lab.put(image("x", 1000, odd))
    writes = lab.shard._stats.written
    lab.put(image("x", 1001, odd), image("y", 1002, odd))
    assert sum(map(len, lab.learner.windows)) == trained + 1
    assert lab.shard._stats.written == writes + 1, "that of y, which had none"
    assert lab.shard._stats.duplicates >= 2
    assert lab.found("x").count == 1, "its copy is counted with the next image that is none"
    lab.put(image("x", 1003, GREEN))
    assert lab.found("x").count == 3


def test_of_frames_that_are_all_copies_one_a_minute_is_written(tmp_path: Path) -> None:
    """Else a scene that changes slowly would drift away from its vector, whose key would expire at last."""
    lab = Lab(tmp_path, stream=stream_of(duplicate=0.05))
    lab.release(1)
    for at in range(180):
        lab.put(image("x", 600 + at, RED))
    assert lab.shard._stats.written == 3
    assert lab.found("x").count == 121
    assert lab.shard._stats.duplicates == 179


def test_the_same_frame_is_a_copy_though_nothing_else_was_seen() -> None:
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(3, 64)).astype(np.float32)
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    judge, before = Duplicates(0.3), np.zeros_like(frames)
    for turn in range(100):
        copies, same = judge.judge(frames, before)
        assert copies.all() == same.all() == copies.any() == same.any() == (turn > 0)
        before = frames
    copies, _ = Duplicates(0.3).judge(np.repeat(frames, 2, 0), np.zeros((6, 64), np.float32))
    assert copies.tolist() == [False, True] * 3, "in one batch, too"


def test_images_of_several_topics_all_go_to_the_learner(tmp_path: Path) -> None:
    lab = Lab(tmp_path, topics=("photos", "scans"))
    lab.put(image("a", 10, RED), image("b", 11, GREEN)._replace(topic=1))
    assert sum(map(len, lab.learner.windows)) == 2


def crowd(lab: Lab) -> None:
    """As many grey images as it takes for others to be judged."""
    rng = np.random.default_rng(0)
    some = [tuple(c) for c in rng.integers(90, 110, (3 * LEAST, 3)).tolist()]
    lab.put(*(image(f"e{i}", 10 + i, c) for i, c in enumerate(some)))


def test_a_slow_change_is_written_though_each_image_is_like_the_one_before(tmp_path: Path) -> None:
    lab = Lab(tmp_path, stream=stream_of(duplicate=0.05))
    lab.release(1)
    crowd(lab)
    colours: list[Any] = [(255 - 4 * i, 0, 4 * i) for i in range(35)]
    written = set()
    for at, colour in enumerate(colours):
        lab.put(image("x", 1000 + at, colour))
        written.add(lab.found("x").count)
    assert 1 < len(written) < len(colours), "some were copies of what was written before"
    last = vector(1, colours[-1])
    assert lab.found("x").vector @ last > 0.98 > vector(1, colours[0]) @ last


def test_a_copy_moves_the_mean_of_several_images(tmp_path: Path) -> None:
    lab = Lab(tmp_path, window=2, stream=stream_of(duplicate=0.05))
    lab.release(1)
    crowd(lab)
    lab.put(image("x", 1000, (0, 0, 255)))
    lab.put(image("x", 1001, (255, 0, 0)))
    lab.put(image("x", 1002, (255, 0, 0)))
    assert lab.found("x").count == 3
    np.testing.assert_allclose(lab.found("x").vector, vector(1, (255, 0, 0)), atol=1e-6)


def test_who_comes_back_with_the_same_image_begins_anew(tmp_path: Path) -> None:
    lab = Lab(tmp_path, stream=stream_of(duplicate=0.05))
    lab.release(1)
    crowd(lab)
    lab.put(image("x", 1000, (255, 0, 0)))
    before = lab.found("x")
    lab.put(deletion("x"), image("x", 1001, (255, 0, 0)))
    assert lab.found("x").count == 1
    assert lab.found("x").since > before.since


def test_a_copy_is_judged_beside_what_is_usual() -> None:
    """Where all images are alike a high cosine says nothing."""
    rng = np.random.default_rng(0)

    def unit(x: Any) -> Any:
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    alike = unit(np.eye(1, 64) + 0.01 * rng.normal(size=(500, 64)))
    none = np.zeros_like(alike)
    judge = Duplicates(0.1)
    assert not judge.judge(alike, none)[0].any()
    spread = unit(rng.normal(size=(500, 64)))
    judge = Duplicates(0.3)
    judge.judge(spread, none)
    copies, same = judge.judge(
        np.concatenate([spread[:5], unit(rng.normal(size=(5, 64)))]),
        np.concatenate([spread[:2], none[:8]]),
    )
    assert copies.tolist() == [True] * 5 + [False] * 5
    assert same.tolist() == [True] * 2 + [False] * 8


def test_what_is_unlike_all_is_no_copy_of_nothing() -> None:
    east = np.tile(np.eye(1, 8, dtype=np.float32), (LEAST, 1))
    judge = Duplicates(0.5)
    judge.judge(east, np.zeros_like(east))
    north = np.eye(1, 8, k=1, dtype=np.float32)
    new = np.concatenate([-0.6 * east[:1] + 0.8 * north, -0.6 * east[:1] - 0.8 * north])
    copies, same = judge.judge(new, np.zeros_like(new))
    assert not same.any(), "there was none before them"
    assert not copies.any(), "nor is one like the other"


def test_a_new_release_takes_as_many_images_of_a_turn_as_there_is_time_for(tmp_path: Path) -> None:
    lab = Lab(tmp_path, window=3)
    lab.release(1)
    names = [f"e{i}" for i in range(4)]
    lab.put(*(image(who, 10 + at, RED) for who in names for at in range(3)))
    assert lab.shard.images is not None
    lab.shard.images.most, lab.shard._chunk = 7, 40
    lab.release(2)
    lab.shard.turn()
    assert sum(lab.found(who).release == 2 for who in names) == 2, "six images"
    settle(lab.shard)
    assert {lab.found(who).release for who in names} == {2}


def test_a_turn_takes_as_many_images_as_it_has_time_for(lab: Lab) -> None:
    now = [0.0]

    def slow() -> float:
        now[0] += 1.0  # each look at the clock is a second later
        return now[0]

    images = Images(ImageConfig(side=8), STREAM.shape, slow)
    images._adapt(100, 1.0)
    assert images.most == (256 + 10) // 2
    for _ in range(20):
        images._adapt(images.most, 10.0)
    assert images.most == 16, "but never none"


def test_a_release_is_judged_on_few_large_images_and_on_few_of_them_at_once() -> None:
    large = msgspec.structs.replace(STREAM.shape, side=224)
    assert (resident_windows(64, STREAM.shape), resident_windows(64, large)) == (4096, 640)
    rows = Rows.empty(large, 40)
    entity = np.arange(40)
    windows = Windows(rows, np.arange(41), np.zeros((40, large.totals)), rows.time_us, entity)
    seen = []

    def run(view: Any) -> Any:
        seen.append(len(view["pixels"]))
        return view["pixels"][:, 0, 0, :2].float()

    assert in_parts(windows, 0, run).shape == (40, 2)
    assert sum(seen) == 40
    assert max(seen) < 30

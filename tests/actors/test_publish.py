"""Releases from real snapshots of a learner, into real Redis: only proven ones, and always announced."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import redis
import safetensors.torch

from actors.candidate import ENCODER_FILE, RESIDENT_FILE, ReleaseConfig
from actors.encode import Release
from actors.folders import Folder, write_folder
from actors.graphs import in_parts
from actors.learn import Learn
from actors.publish import Publish
from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from actors.requests import ASKED, SNAPSHOT, Request, ask, ask_learner, take, taken
from actors.served import current_release, set_current
from daemon import servers
from learning import compatibility, encoders, export
from learning.config import LearnerConfig
from schemas.errors import LeaseLost, ReleaseError
from schemas.published import Manifest, current_key, encoder_key, releases_key
from schemas.records import F32, Windows
from tests.learning.streams import random_windows
from tests.services import ENCODER, STREAM

SHAPE = STREAM.shape


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four snapshots, of learners whose weights have nothing in common."""
    found = []
    for seed in range(4):
        folder = tmp_path_factory.mktemp("learner")
        config = LearnerConfig(
            batch_entities=8, min_entities=8, updates_per_record=1.0, warmup_updates=2, seed=seed
        )
        learner = Learn(config, ENCODER, SHAPE, folder, seed + 1, ReleaseConfig())
        windows = random_windows(np.random.default_rng(0), 900, SHAPE, ENCODER.window)
        learner.offer([(0, [1], windows)])
        for _ in range(3):
            learner.turn()
        learner.run(lambda: True)
        found.append(folder / f"{seed + 1}-1")
    return found


class Service:
    """A state folder whose learner snapshots on demand, and the publisher that watches it."""

    def __init__(self, root: Path, learned: list[Path], url: str) -> None:
        self.root, self._learned, self._url = root, learned, url
        self.sink = RedisSink(RedisConfig(url=url, timeout_s=1.0, retry_first_s=1e-9), root.name)
        self.start()

    def start(self, **config: Any) -> None:
        given = ReleaseConfig(**config)
        self.publish = Publish(self.root, STREAM, ENCODER, given, self.sink, 1, lambda: 1e9)
        self.publish.oldest_release = 0

    def snapshot(self, number: int) -> None:
        to = self.root / "learner" / self._learned[number].name
        shutil.copytree(self._learned[number], to)

    def turns(self, count: int = 2) -> None:
        """One releases, the next one tells Redis."""
        for _ in range(count):
            self.publish.turn()

    def release(self, number: int) -> None:
        self.snapshot(number)
        self.turns()

    @property
    def current(self) -> int:
        return current_release(self.root / "releases")

    def manifest(self, release: int) -> Manifest:
        return msgspec.convert(Folder.open(self.root / "releases" / str(release)).meta, Manifest)

    def vectors(self, release: int, windows: Windows) -> F32:
        loaded = Release.load(self.root / "releases" / str(release)).encode_session
        found = in_parts(windows, ENCODER.state, lambda view: export.run(loaded, view)[0])
        return found.numpy()  # type: ignore[no-any-return]


@pytest.fixture
def make(tmp_path: Path, stream: str, learned: list[Path]) -> Iterator[Callable[[str], Service]]:
    made: list[Service] = []

    def service(url: str) -> Service:
        made.append(Service(tmp_path / stream, learned, url))
        return made[-1]

    yield service
    for each in made:
        each.sink.close()


@pytest.fixture
def service(make: Callable[[str], Service], database: redis.Redis, redis_server: str) -> Service:
    return make(redis_server)


def entries(client: redis.Redis, stream: str) -> list[tuple[bytes, bytes]]:
    return [(e[b"release"], e[b"kind"]) for _, e in client.xrange(releases_key(stream))]  # type: ignore[union-attr]


def test_the_first_release(service: Service, database: redis.Redis, stream: str) -> None:
    service.turns()
    assert service.current == 0
    assert not database.exists(current_key(stream))
    service.snapshot(0)
    service.publish.turn()
    assert service.current == 1
    service.publish.turn()
    assert database.hgetall(current_key(stream)) == {
        b"release": b"1", b"generation": b"1", b"dim": b"8", b"dtype": b"float32", b"epoch": b"1",
    }  # fmt: skip
    assert entries(database, stream) == [(b"1", b"release")]
    found = database.hgetall(encoder_key(stream, 1))
    assert set(found) == {b"onnx", b"step_onnx", b"sha256", b"generation", b"manifest"}  # type: ignore[arg-type]
    manifest = service.manifest(1)
    assert msgspec.json.decode(found[b"manifest"], type=Manifest) == manifest  # type: ignore[index]
    assert (manifest.stream, manifest.snapshot, manifest.updates) == (stream, "1-1", 3)
    assert manifest.fields == STREAM.field
    names = ["parity", "rank", "spread", "retrieval"]
    assert [(g.name, g.ok) for g in manifest.gates] == [(name, True) for name in names]
    assert manifest.overlap_previous is None
    stats = service.publish.stats()
    assert (stats.release, stats.generation, stats.releases, stats.sink_up) == (1, 1, 1, True)
    service.turns(5)
    assert service.current == 1, "a snapshot is released once"
    assert entries(database, stream) == [(b"1", b"release")]


def test_the_second_is_rotated_onto_the_first(service: Service, learned: list[Path]) -> None:
    """They were learnt apart, from other weights: without the rotation nothing would agree."""
    service.release(0)
    service.release(1)
    overlap = service.manifest(2).overlap_previous
    assert overlap is not None
    assert overlap.release == 1
    assert overlap.entities > 10
    resident = Windows.of_arrays(Folder.open(learned[1]).tensors(RESIDENT_FILE))
    first, second = (service.vectors(n, resident) for n in (1, 2))
    np.testing.assert_allclose(np.linalg.norm(second, axis=1), 1.0, atol=1e-5)
    encoder = encoders.build(ENCODER, SHAPE)
    state = Folder.open(learned[1]).read("encoder.safetensors")
    encoder.load_state_dict(safetensors.torch.load(state))
    unrotated = compatibility.embed(encoder, resident).numpy()
    cosine = float((first * second).sum(1).mean())
    assert cosine > float((first * unrotated).sum(1).mean()) + 0.2
    assert overlap.cosine == pytest.approx(cosine, abs=0.2), "on entities it was not fitted on"
    service.release(2)
    overlap = service.manifest(3).overlap_first
    assert overlap is not None
    assert overlap.release == 1
    assert service.publish.stats().overlap_neighbours > 0


def test_what_fails_parity_keeps_the_old_one_and_is_left_for_inspection(
    service: Service, database: redis.Redis, stream: str
) -> None:
    service.release(0)
    service.start(parity=1e-12)
    service.release(1)
    service.release(2)
    assert service.current == 1
    assert database.hget(current_key(stream), "release") == b"1"
    assert service.publish.stats().refused == {"parity": 2}
    refused = service.root / "releases" / "refused"
    assert sorted(path.name for path in refused.iterdir()) == ["2", "3"]
    assert Release.load(refused / "3").manifest.gates[0].ok is False
    service.start()
    service.release(3)
    assert service.current == 4, "a refused number is not given again"
    assert entries(database, stream) == [(b"1", b"release"), (b"4", b"release")]


def test_a_snapshot_that_cannot_be_exported_keeps_the_old_one(service: Service) -> None:
    service.release(0)
    service.snapshot(1)
    (service.root / "learner" / "2-1" / "encoder.safetensors").write_bytes(b"")
    service.turns()
    assert service.current == 1
    assert service.publish.stats().refused == {"export": 1}
    assert service.publish.stats().gate_values == {}, "none was measured"
    service.release(2)
    assert service.current == 2


def test_it_waits_until_no_group_carries_an_older_one(service: Service) -> None:
    service.publish.oldest_release = -1
    service.release(0)
    assert service.current == 0, "the groups have not said yet what they carry"
    service.publish.oldest_release = 0
    service.turns()
    service.publish.oldest_release = 1
    service.release(1)
    assert service.current == 2
    service.release(2)
    assert service.current == 2, "some group's state still carries release 1"
    service.publish.oldest_release = 2
    service.turns()
    assert service.current == 3


def test_over_months_it_remembers_those_on_disk_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.publish.KEEP", 2)
    service.start(keep_redis=2)
    for number in range(4):
        service.release(number)
    there = {int(path.name) for path in (service.root / "releases").glob("[0-9]*")}
    assert there == {1, 3, 4} == set(service.publish._manifests)


def test_redis_keeps_the_newest_and_the_disk_follows(
    service: Service, database: redis.Redis, stream: str
) -> None:
    service.start(keep_redis=2)
    for number in range(4):
        service.release(number)
    kept = [n for n in range(1, 5) if database.exists(encoder_key(stream, n))]
    assert kept == [3, 4]
    assert (service.root / "releases" / "1").exists(), "later ones are compared with the first"


def test_a_redis_that_came_back_empty_is_told_again(
    make: Callable[[str], Service], tmp_path: Path, stream: str
) -> None:
    with servers.redis_server(tmp_path / "redis") as server:
        service = make(f"redis://{server.address}")
        service.release(0)
        service.release(1)
        server.kill()
        service.turns()
        assert not service.publish.stats().sink_up
        assert "no answer" in service.publish.stats().sink_error
        service.release(2)
        assert service.current == 3, "releases go on without Redis"
        server.start()
        service.turns()
        assert service.publish.stats().sink_up
        assert not service.publish.stats().sink_error
        with closing(redis.Redis.from_url(f"redis://{server.address}")) as client:
            assert client.hget(current_key(stream), "release") == b"3"
            assert all(client.exists(encoder_key(stream, n)) for n in (1, 2, 3))
            server.kill()  # and again, while it is being told
            server.start()
            service.turns()
            assert client.hget(current_key(stream), "release") == b"3"


def test_a_redis_that_was_flushed_under_it_is_told_again(
    service: Service, database: redis.Redis, stream: str
) -> None:
    """The same server, the same run: only `current` is gone."""
    service.release(0)
    service.release(1)
    database.delete(current_key(stream), encoder_key(stream, 1), encoder_key(stream, 2))
    service.turns(1)
    assert database.hget(current_key(stream), "release") == b"2"
    assert database.exists(encoder_key(stream, 1), encoder_key(stream, 2)) == 2


def test_a_release_is_in_redis_before_shards_may_adopt_it(
    service: Service, database: redis.Redis, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def named(releases: Path, number: int) -> None:
        seen.append(database.exists(encoder_key(stream, number)))
        set_current(releases, number)

    monkeypatch.setattr("actors.publish.set_current", named)
    service.snapshot(0)
    service.turns(1)
    assert seen == [1]
    assert database.hget(current_key(stream), "release") == b"1"


def test_a_publisher_whose_lease_was_taken_changes_nothing(service: Service) -> None:
    service.snapshot(0)
    (service.root / "epoch-7").touch()
    with pytest.raises(LeaseLost, match="a successor holds the lease"):
        service.turns(1)
    assert service.current == 0


def test_a_new_publisher_goes_on_where_the_last_stopped(
    service: Service, database: redis.Redis, stream: str
) -> None:
    service.release(0)
    database.delete(current_key(stream))
    service.start()
    service.turns()
    assert database.hget(current_key(stream), "release") == b"1"
    assert service.current == 1, "the snapshot it came from is known from the manifest"
    assert service.publish.stats().generation == 1


def test_a_harmed_current_release_is_not_announced(service: Service) -> None:
    service.release(0)
    file = service.root / "releases" / "1" / "encode.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    service.start()
    with pytest.raises(ReleaseError, match="truncated or altered"):
        service.turns()


def collapse(folder: Path) -> None:
    """The snapshot's encoder makes one vector of all."""
    weights = safetensors.torch.load(Folder.open(folder).read(ENCODER_FILE))
    weights["out.weight"] *= 1e-6
    weights["out.bias"] += 1.0
    others = {f: Folder.open(folder).read(f) for f in Folder.open(folder).files}
    others[ENCODER_FILE] = safetensors.torch.save(weights)
    meta = Folder.open(folder).meta
    shutil.rmtree(folder)
    write_folder(folder.parent, folder.name, list(others.items()), lambda: meta)


def test_a_collapse_is_never_released(service: Service, database: redis.Redis, stream: str) -> None:
    service.release(0)
    service.snapshot(1)
    collapse(service.root / "learner" / "2-1")
    service.turns(5)
    assert service.current == 1
    assert entries(database, stream) == [(b"1", b"release")]
    refused = msgspec.convert(
        Folder.open(service.root / "releases" / "refused" / "2").meta, Manifest
    )
    assert {g.name for g in refused.gates if not g.ok} >= {"rank", "spread"}
    stats = service.publish.stats()
    assert stats.refused["rank"] == stats.refused["spread"] == 1
    assert stats.gate_values["rank"] < 1.2 < stats.gate_thresholds["rank"]
    service.release(2)
    assert service.current == 3, "the next one passes"


def test_who_forces_it_gets_what_the_gates_refuse(service: Service) -> None:
    service.release(0)
    service.snapshot(1)
    collapse(service.root / "learner" / "2-1")
    service.turns()
    assert service.current == 1
    ask(service.root / "releases", Request(force=True))
    service.turns()
    assert service.current == 3
    assert {g.name for g in service.manifest(3).gates if not g.ok} >= {"rank", "spread"}


def test_rolled_back_it_stays_so_until_somebody_asks(
    service: Service, database: redis.Redis, stream: str
) -> None:
    for number in range(3):
        service.release(number)
    ask(service.root / "releases", Request(rollback=2))
    service.turns(1)
    assert service.current == 2
    assert database.hget(current_key(stream), "release") == b"2"
    assert entries(database, stream)[-1] == (b"2", b"rollback")
    service.release(3)
    assert service.current == 2, "no release comes by itself"
    assert service.publish.stats().held == "rolled back to 2"
    service.start()
    service.turns()
    assert service.current == 2, "nor after a restart"
    ask(service.root / "releases", Request())
    service.turns()
    assert (service.current, service.publish.stats().held) == (4, "")
    assert entries(database, stream)[-1] == (b"4", b"release")


@pytest.mark.parametrize("asked", [b"", b"[1]", b'{"rollback": "x", "force": 1}', b"7", b"\xff"])
def test_what_is_no_request_changes_nothing(service: Service, asked: bytes) -> None:
    service.release(0)
    (service.root / "releases" / "asked.json").write_bytes(asked)
    service.turns()
    assert (service.current, service.publish.stats().requests) == (1, 0)
    assert not (service.root / "releases" / "asked.json").exists()


def test_before_there_is_anything_it_can_be_asked_too(tmp_path: Path) -> None:
    ask(tmp_path / "releases", Request())
    ask_learner(tmp_path / "learner", SNAPSHOT)
    assert take(tmp_path / "releases") == Request()
    assert taken(tmp_path / "learner", SNAPSHOT)


@pytest.mark.parametrize("release", [7, 2])
def test_nobody_rolls_back_to_what_is_not_whole(service: Service, release: int) -> None:
    for number in range(3):
        service.release(number)
    graph = service.root / "releases" / "2" / "encode.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    ask(service.root / "releases", Request(rollback=release))
    service.turns()
    assert service.current == 3
    assert service.publish.stats().held == ""


def test_a_harmed_first_release_holds_no_later_one_up(service: Service) -> None:
    """It is only compared with."""
    for number in range(2):
        service.release(number)
    (service.root / "releases" / "1" / "encode.onnx").write_bytes(b"")
    service.release(2)
    assert service.current == 3
    manifest = service.manifest(3)
    assert manifest.overlap_previous is not None
    assert manifest.overlap_first is None


def test_where_all_releases_are_gone_a_new_generation_begins(
    service: Service, database: redis.Redis, stream: str
) -> None:
    """Nothing is left to rotate onto, and states and Redis still have what the old ones made."""
    service.release(0)
    service.release(1)
    shutil.rmtree(service.root / "releases")
    service.start()
    service.release(2)
    assert (service.current, service.manifest(3).generation) == (3, 2)
    found = database.hmget(current_key(stream), "release", "generation")
    assert found == [b"3", b"2"]


@pytest.mark.parametrize("asked", [b"", b"[]", b"{}", b'{"rollback": "x", "force": false}'])
def test_what_is_asked_in_other_words_is_passed_over(service: Service, asked: bytes) -> None:
    service.release(0)
    (service.root / "releases" / ASKED).write_bytes(asked)
    service.turns()
    assert service.current == 1
    assert not (service.root / "releases" / ASKED).exists()


def test_a_disk_that_is_full_ends_no_publisher_that_is_asked_to_roll_back(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    for number in range(2):
        service.release(number)
    ask(service.root / "releases", Request(rollback=1))
    with monkeypatch.context() as disk:
        disk.setattr("actors.requests.write_file", full)
        disk.setattr("actors.served.write_file", full)
        service.turns()
    assert service.current == 2
    assert service.publish.stats().requests == 1

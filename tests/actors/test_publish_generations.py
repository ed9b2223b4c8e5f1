"""What cannot be compared with what is served begins another generation; readers go over when it is full."""

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import redis
from structlog.testing import capture_logs

from actors.candidate import GenerationConfig, ReleaseConfig
from actors.folders import Folder
from actors.publish import Publish
from actors.requests import Request, ask
from actors.served import Served, served, set_served, usable_release
from schemas.errors import SinkDown
from schemas.published import current_key, encoder_key, entity_key
from schemas.stream import Field, FieldType
from tests.actors.test_publish import Service, entries, learned, make, service  # noqa: F401
from tests.services import ENCODER, STREAM, make_release

APART = GenerationConfig(overlap=0.9999, grace_s=100.0)


def start(of: Service, generation: GenerationConfig = APART) -> None:
    of.start(generation=generation)


def opened(of: Service) -> None:
    """Release 1 is served, and 2 is being filled."""
    start(of)
    of.release(0)
    of.release(1)


def state(of: Service) -> Served:
    return served(of.root / "releases")


def fill(of: Service) -> None:
    """As the daemon does once all groups have said so."""
    of.publish.filled = state(of).next
    of.turns(1)


def test_what_is_far_from_the_served_one_opens_a_generation(
    service: Service,  # noqa: F811
    database: redis.Redis,
    stream: str,
) -> None:
    opened(service)
    assert state(service) == Served(1, 1, next=2, generation=2)
    assert database.hget(current_key(stream), "generation") == b"1", "readers stay where they are"
    assert database.exists(encoder_key(stream, 2)), "shards may write its vectors"
    assert service.publish.stats().next_release == 2
    manifest = service.manifest(2)
    assert manifest.overlap_previous is not None, "why it was opened is in its manifest"
    assert not [g for g in manifest.gates if g.name.startswith("overlap")]
    assert np.isnan(service.publish.stats().overlap_cosine), "the first has none to compare with"
    fill(service)
    assert state(service) == Served(2, 2, left_us={1: int(1e15)})
    assert database.hget(current_key(stream), "generation") == b"2"
    start(service, GenerationConfig(overlap=-1.0))
    service.release(2)
    assert service.manifest(3).generation == 2
    overlap = service.manifest(3).overlap_first
    assert overlap is not None and overlap.release == 2, "the first is that of its generation"
    kinds = [(b"1", b"release"), (b"2", b"release"), (b"3", b"release")]
    assert entries(database, stream) == kinds


def test_no_other_release_is_made_before_it_is_full(service: Service) -> None:  # noqa: F811
    opened(service)
    start(service, GenerationConfig(overlap=-1.0))
    service.release(2)
    assert state(service).next == 2 and service.publish.stats().releases == 0
    fill(service)
    assert state(service).release == 3


def test_another_encoder_opens_a_generation(service: Service, tmp_path: Path) -> None:  # noqa: F811
    service.release(0)
    wide = msgspec.structs.replace(ENCODER, dim=12)
    service.publish = Publish(
        service.root, STREAM, wide, ReleaseConfig(), service.sink, 1, lambda: 1e9
    )
    service.publish.oldest_release = 0
    found = Folder.open(service._learned[1])
    assert found.meta["encoder"]["dim"] == 8
    service.release(1)
    assert not service.publish.stats().refused, "the learner has only just begun anew"
    assert state(service) == Served(1, 1)


def test_who_was_killed_in_the_middle_of_it_goes_on(
    service: Service,  # noqa: F811
    database: redis.Redis,
    stream: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened(service)

    def killed(releases: Path, new: Served) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("actors.publish.set_served", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(service)
    assert database.hget(current_key(stream), "release") == b"2"
    start(service)
    service.turns()
    assert state(service).release == 2
    assert database.hget(current_key(stream), "release") == b"2"
    assert entries(database, stream) == [(b"1", b"release"), (b"2", b"release")], "nobody went back"


def test_who_was_killed_right_behind_it_does_not_hurry_the_next_one(
    service: Service,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened(service)

    def killed(releases: Path, new: Served) -> None:
        set_served(releases, new)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("actors.publish.set_served", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(service)
    start(service)
    service.turns(1)
    service.release(2)
    assert (state(service).release, state(service).next) == (2, 3), "nobody is in it yet"


def test_a_redis_that_goes_away_just_then_is_told_only_of_what_is_full(
    service: Service,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened(service)

    def down(*_: object, **__: object) -> None:
        raise SinkDown("gone")

    with monkeypatch.context() as patch:
        patch.setattr(service.sink, "publish_release", down)
        fill(service)
    service.publish.filled = 0  # what shards could not write meanwhile is owed again
    service.turns()
    assert state(service).release == 1


def test_a_damaged_one_is_given_up(service: Service) -> None:  # noqa: F811
    """Whether the publisher notices, or a daemon that starts."""
    opened(service)
    releases = service.root / "releases"
    file = releases / "2" / "encode.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    service.publish._there.clear()  # it is told to Redis again
    fill(service)
    assert state(service).release == 1 and not state(service).next
    set_served(releases, replace(state(service), next=2, generation=2))
    assert usable_release(releases) == 1
    assert state(service) == Served(1, 1, left_us={2: 0})


def test_a_redis_that_is_down_holds_it_up_and_is_told_of_once(
    service: Service,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def down(*_: object) -> None:
        raise SinkDown("no answer")

    opened(service)
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(service.sink, "set_current", down)
        fill(service)
        service.turns(5)
    assert [line["event"] for line in logs] == ["generation_not_served"]
    service.turns(2)
    assert state(service).release == 2


def test_what_one_removal_has_passed_another_has_still_to_look_at(
    service: Service,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A generation becomes due while another is being removed."""
    asked = list[tuple[int, int]]()

    def drop(generation: int, cursor: int) -> int:
        asked.append((generation, cursor))
        return cursor + 1

    monkeypatch.setattr(service.sink, "drop_generation", drop)
    opened(service)
    fill(service)
    now = state(service)
    set_served(service.root / "releases", replace(now, left_us={1: now.left_us[1], 5: 0}))
    service.turns(1)
    service.publish._wall = lambda: 1e9 + 100.0
    service.turns(1)
    first = dict(reversed(asked))
    assert first == {5: 0, 1: 0}


def test_a_full_disk_holds_it_up(
    service: Service,  # noqa: F811
    database: redis.Redis,
    stream: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(releases: Path, new: Served) -> None:
        raise OSError(errno.ENOSPC, "no space")

    opened(service)
    with monkeypatch.context() as disk:
        disk.setattr("actors.publish.set_served", full)
        fill(service)
        service.turns()
    assert state(service).release == 1
    service.turns(1)
    assert state(service).release == 2
    assert entries(database, stream) == [(b"1", b"release"), (b"2", b"release")]


def test_the_old_one_is_kept_for_its_grace(
    service: Service,  # noqa: F811
    database: redis.Redis,
    stream: str,
) -> None:
    opened(service)
    for generation in (1, 2):
        for name in range(5):
            database.hset(entity_key(stream, generation, f"e{name}"), "vector", b"")
    fill(service)
    service.turns()
    assert database.exists(entity_key(stream, 1, "e0"))
    service.publish._wall = lambda: 1e9 + 100.0
    service.turns(20)
    assert not database.exists(*(entity_key(stream, 1, f"e{n}") for n in range(5)))
    assert database.exists(*(entity_key(stream, 2, f"e{n}") for n in range(5))) == 5
    assert state(service).left_us == {}


def test_back_to_a_release_of_another_generation(
    service: Service,  # noqa: F811
    database: redis.Redis,
    stream: str,
) -> None:
    """Its vectors are old: they are filled anew first."""
    opened(service)
    fill(service)
    ask(service.root / "releases", Request(rollback=1))
    service.turns(1)
    assert state(service) == Served(2, 2, next=1, generation=1)
    assert database.hget(current_key(stream), "release") == b"2"
    fill(service)
    assert state(service).release == 1
    assert database.hget(current_key(stream), "generation") == b"1"
    assert entries(database, stream)[-1] == (b"1", b"rollback")
    service.release(2)
    assert state(service).release == 1 and not state(service).next, "held until it is asked for"
    ask(service.root / "releases", Request())
    service.turns()
    assert state(service).next == 3
    assert service.manifest(3).generation == 3, "a number is never given again"


def test_nobody_goes_back_to_a_release_of_fields_that_are_read_no_more(
    service: Service,  # noqa: F811
) -> None:
    """Shards could not fill it, and no release would ever be made again."""
    service.release(0)
    releases = service.root / "releases"
    other = msgspec.structs.replace(STREAM, field=(Field("what", FieldType.category),))
    make_release(releases, 2, ENCODER, other, generation=2)
    service.publish = Publish(
        service.root, other, ENCODER, ReleaseConfig(), service.sink, 1, lambda: 1e9
    )
    before = state(service)
    ask(releases, Request(rollback=1))
    service.turns(1)
    assert state(service) == before and not service.publish.stats().held


def test_what_was_removed_of_one_generation_says_nothing_of_the_next(
    service: Service,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = list[tuple[int, int]]()

    def drop(generation: int, cursor: int) -> int:
        looked.append((generation, cursor))
        return cursor + 1

    monkeypatch.setattr(service.sink, "drop_generation", drop)
    service.release(0)
    for left in (2, 3):
        set_served(service.root / "releases", Served(1, 1, left_us={left: 0}))
        service.turns(1)
    assert (3, 0) in looked


def test_a_served_release_that_is_damaged_meanwhile_is_replaced(service: Service) -> None:  # noqa: F811
    """Else a shard that starts again has nothing to serve with, and no release is ever made."""
    start(service, GenerationConfig(overlap=-1.0))
    service.release(0)
    service.release(1)
    assert state(service).release == 2
    shutil.rmtree(service.root / "releases" / "2")
    start(service, GenerationConfig(overlap=-1.0))
    service.turns()
    assert state(service).release == 3
    overlap = service.manifest(3).overlap_previous
    assert overlap is not None and overlap.release == 1, "which was served until then"


def test_a_rollback_gives_up_what_was_being_filled(service: Service) -> None:  # noqa: F811
    service.release(0)
    service.release(1)
    start(service)
    service.release(2)
    assert state(service).next == 3
    ask(service.root / "releases", Request(rollback=1))
    service.turns()
    assert state(service).release == 1 and not state(service).next
    assert 2 in state(service).left_us, "shards may still write it, and deletions reach it"
    service.publish._wall = lambda: 1e9 + 60.0
    service.turns()
    assert state(service).left_us == {}, "what was written of it is removed"

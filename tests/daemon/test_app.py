"""What the daemon says of its processes before any of them runs."""

import time
from pathlib import Path

import msgspec
import pytest

from actors.folders import write_folder
from actors.graphs import of_stream
from actors.processes import Status
from daemon.app import App, Child, refuse_changed, refuse_other_state
from daemon.supervisor import Process
from schemas.errors import SettingsError, SnapshotError
from schemas.published import Manifest
from schemas.stats import PublisherStats, ShardStats
from schemas.stream import Field, FieldType, StreamConfig
from tests.daemon.test_settings import MINIMAL, parse

HANG_S = parse(MINIMAL).service.hang_s


def app(**processes: tuple[float, Status | None]) -> App:
    """Processes by name: for how long they have stood still, and their last status."""
    made, now = App(parse(MINIMAL)), time.monotonic()
    for name, (still_s, status) in processes.items():
        process = Process(name.replace("_", "-"), now - 1000, 3, now - still_s)
        child = Child(process, start=None, handle=None, status=status)  # type: ignore[arg-type]
        made._children[process.name] = child
    return made


@pytest.mark.parametrize(
    ("name", "status", "allowed_s"),
    [
        ("shard_0", Status(3, ShardStats()), HANG_S / 2),
        ("shard_0", Status(0), HANG_S * 5 / 2),  # it restores
        ("publisher", Status(3), HANG_S * 5 / 2),  # it exports
        ("learner", Status(3), HANG_S * 5 / 2),
    ],
)
def test_a_stream_may_not_stand_still_for_as_long_as_an_export(
    name: str, status: Status, allowed_s: float
) -> None:
    assert app(**{name: (allowed_s - 5, status)}).health() == []
    (reason,) = app(**{name: (allowed_s + 5, status)}).health()
    assert "has not moved for" in reason


def test_a_shard_that_has_not_restored_is_not_ready() -> None:
    assert "shard-0 is being started" in app(shard_0=(0.0, None)).ready()
    assert "shard-0 is being started" in app(shard_0=(0.0, Status(0))).ready()
    assert "shard-0 is being started" not in app(shard_0=(0.0, Status(1, ShardStats()))).ready()


def test_a_release_that_redis_does_not_name_is_not_ready() -> None:
    """As one whose graph is larger than Redis takes: shards have it from the disk, readers know nothing of it."""
    of = app()
    of._totals.update("publisher", PublisherStats(release=1, sink_error="no answer"), False)
    assert "Redis does not name the release: no answer" in of.ready()
    of._totals.update("publisher", PublisherStats(release=1, sink_up=True), False)
    assert not [reason for reason in of.ready() if "does not name" in reason]


def test_of_a_release_the_fields_may_change_and_the_session_gap_may_not() -> None:
    one, two = Field("one", FieldType.number), Field("two", FieldType.category)
    stream = StreamConfig("who", "at", (one,), kind="graph", neighbour="whom", op="op", node=(one,))
    settings = msgspec.structs.replace(parse(MINIMAL), stream=stream)
    encoder = settings.encoder
    served = Manifest(
        stream="s", release=3, generation=1, created_us=1, dim=encoder.dim, window=encoder.window,
        state=encoder.state, encode=(), encode_out=(), encode_sha256="", **of_stream(stream),
    )  # fmt: skip
    changed = msgspec.structs.replace(stream, field=(two,), node=(two,))
    refuse_changed(msgspec.structs.replace(settings, stream=changed), served)
    changed = msgspec.structs.replace(stream, session_gap_s=7.0)
    with pytest.raises(
        SettingsError, match=r"^stream.session_gap_s is 7\.0, release 3 was made with"
    ):
        refuse_changed(msgspec.structs.replace(settings, stream=changed), served)


def test_a_state_of_another_kind_is_refused_before_anything_is_moved(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(parse(MINIMAL), state_dir=str(tmp_path))
    stream, topics = settings.stream, list(settings.source.topics)
    shape = stream.shape
    meta = {
        "topics": topics, "fields": list(stream.columns), "numbers": shape.numbers,
        "categories": shape.categories, "graph": False, "unit": "events",
    }  # fmt: skip
    write_folder(settings.group_folder(1), "1-1", [], lambda: meta)
    refuse_other_state(settings, 2)
    write_folder(
        settings.group_folder(1), "1-2", [], lambda: {**meta, "unit": "graph", "graph": True}
    )
    with pytest.raises(SnapshotError, match="another kind"):
        refuse_other_state(settings, 2)
    (settings.group_folder(1) / "1-2" / "manifest.json").write_text("{")  # its shard looks further
    refuse_other_state(settings, 2)

"""`afresh backfill`: history from files through decode and state into snapshots; Redis once, at the end.

It holds the service's lease, so that no daemon runs meanwhile. Stopped halfway, the same command goes on
where its last snapshot stood. When it is done, the snapshots say where live reading begins.

A group is handed over by a snapshot of the live topics, one group after another: until all have one, `afresh
run` refuses, and the same command goes on with those that are left."""

import contextlib
import hashlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from actors import lease as leases
from actors.capacity import capacity
from actors.cut import columns, wide
from actors.dead_letters import KafkaDeadLetters
from actors.decode import make_decoder
from actors.embed import Releases
from actors.files import FileSource
from actors.folders import Folder, epoch_of, folders
from actors.group import Group
from actors.group_meta import FILES
from actors.processes import widths
from actors.redis_sink import RedisSink
from actors.served import current_release
from actors.shard import Ports, Shard
from actors.source import KafkaSource, partitions
from daemon.settings import Settings
from schemas.errors import AfreshError, LeaseLost, SettingsError, SnapshotError

STOPPED = "stopped; the same command goes on from the last snapshot."
REFUSED = (
    ": history goes in first, and the same files must be named to go on. Choose another name for the stream, "
    "or remove its folder."
)
HANDED_OVER = "stopped; all history is in, and afresh run writes the vectors that are still owed."
log = structlog.get_logger()


class Backfill:
    """then: where live reading starts: earliest, latest, an ISO time with zone, or offsets of every
    partition, `partition:offset` with one topic, `topic:partition:offset` with several."""

    def __init__(self, settings: Settings, files: list[str], then: str, out: Console) -> None:
        self._settings, self._files, self._then, self._out = settings, files, then, out
        self._stop = threading.Event()
        self._lost: LeaseLost | None = None
        fingerprint = hashlib.sha256("\0".join(sorted(files)).encode()).hexdigest()[:12]
        self._topics = (FILES + fingerprint,)

    def run(self) -> None:
        settings = self._settings
        groups = partitions(settings.source)
        if settings.stream.images:
            raise SettingsError(
                'stream.kind is "image": rows of files hold no images. Produce the history into the topic, its '
                "images or their URIs."
            )
        if settings.stream.nodes and groups > 1:
            raise SettingsError(
                f'stream.kind is "graph" and the stream has {groups} partitions: their groups learn of each '
                "other's edges through Kafka, which files do not pass. Produce the history into the topic."
            )
        if settings.stream.images:
            raise SettingsError(
                'stream.kind is "image", and files have records of events and edges alone. Produce the history into '
                "the topic: JSON with URIs will do."
            )
        positions = self._positions(groups)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        with self._lease() as lease:
            source = FileSource(self._files, settings.stream, groups)
            shard = self._shard(source, groups, lease.epoch)
            try:
                self._read(shard, source)
                self._pin(shard)
                self._hand_over(shard, positions)
            finally:
                shard.close() if self._lost else shard.drain()
            self._check_handed_over(shard)
        rows = sum(g.stats(0, 0.0, paused=False).entities for g in shard.groups.values())
        bad = sum(shard.stats().dead_letters.values())
        self._out.print(
            f"{source.done:,} rows were taken in, {bad:,} of them as dead letters; {rows:,} entities. "
            f"afresh run goes on with {self._then}."
        )

    @contextlib.contextmanager
    def _lease(self) -> Iterator[leases.Lease]:
        service = self._settings.service
        lease = leases.take(
            self._settings.folder,
            lease_s=service.lease_s,
            clock=time.monotonic,
            wait=self._stop.wait,
        )
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(service.lease_s / 4):
                try:
                    lease.renew()
                except LeaseLost as error:
                    self._lost = error
                    self._stop.set()
                    return
                except OSError as error:
                    log.error("lease_not_renewed", reason=str(error), folder=str(lease.folder))

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield lease
        finally:
            ended.set()
            thread.join()
            lease.release()

    def _shard(self, source: FileSource, groups: int, epoch: int) -> Shard:
        s = self._settings
        stream = wide(s.stream, s.releases)
        shape = stream.shape
        window, hidden, anchor = widths(s.releases, s.encoder)
        slots = capacity(s.state, groups, shape, window, hidden)
        left = self._left(groups)
        opened = [
            Group.open(
                n,
                epoch_of(epoch, 0),
                self._topics,
                s.group_folder(n),
                shape,
                (window, hidden, slots, groups * slots, anchor),
                stream.columns,
            )
            for n in left
        ]
        if s.stream.nodes:
            for group in opened:
                group.join(groups)
        ports = Ports(
            source,
            make_decoder(stream, msgspec.structs.replace(s.decode, format=source.decode_format)),
            RedisSink(s.redis, s.name),
            KafkaDeadLetters(s.source, s.name),
            Releases(s.folder / "none-yet"),  # nothing is encoded while history comes in
        )
        return Shard(s.shard, opened, ports)

    def _left(self, groups: int) -> list[int]:
        """Groups that were not handed over. Raises SettingsError where there is state of something else."""
        left, live = [], ""
        for number in range(groups):
            path = next(iter(folders(self._settings.group_folder(number))), None)
            topics = _topics(path)
            if topics in (None, list(self._topics)):
                left.append(number)
            elif topics == list(self._settings.source.topics):
                live = f"{path} has state already, of {topics}"
            else:
                raise SettingsError(f"{path} has state already, of {topics}{REFUSED}")
        unread = any(not folders(self._settings.group_folder(number)) for number in left)
        if live and (unread or not left):
            raise SettingsError(live + REFUSED)
        return left

    def _read(self, shard: Shard, source: FileSource) -> None:
        columns = (
            TextColumn("history"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} rows"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._out) as bar:
            task = bar.add_task("", total=source.total)
            while not source.finished:
                self._go_on(STOPPED)
                shard.turn(shard.config.max_records * 4)
                # Rows of one message share an offset, and a message may be cut elsewhere the next time:
                # a snapshot must not hold a part of one.
                shard.snapshots.finish()
                bar.update(task, completed=source.done, total=source.total)

    def _go_on(self, stopped: str) -> None:
        if self._lost is not None:
            raise self._lost
        if self._stop.is_set():
            raise AfreshError(stopped)

    def _pin(self, shard: Shard) -> None:
        """Every group has a snapshot of history before the first is handed over: it tells who is left."""
        self._go_on(STOPPED)
        for group in shard.groups.values():
            if not folders(group.folder):
                group.begin_snapshot(shard.dead_letters.flush, [])
        shard.snapshots.finish()
        for group in shard.groups.values():
            if not folders(group.folder):
                raise SnapshotError(f"{group.folder}: no snapshot could be written. {STOPPED}")

    def _check_handed_over(self, shard: Shard) -> None:
        for group in shard.groups.values():
            newest = next(iter(folders(group.folder)), None)
            if _topics(newest) != list(group.topics):
                raise SnapshotError(
                    f"{group.folder}: the last snapshot could not be written; the log says why. Mend it: "
                    "the same command goes on."
                )

    def _hand_over(self, shard: Shard, positions: list[list[int]]) -> None:
        """From now on the groups stand where live reading begins; who has a vector due gets it."""
        s = self._settings
        for number, group in shard.groups.items():
            if group.snapshot is not None:
                group.snapshot.abandon()
                group.snapshot = None
            group.topics, group.positions = s.source.topics, list(positions[number])
            group.phase = "starting"
        if not current_release(s.releases):
            return  # the first release will write them
        there = columns(wide(s.stream, s.releases))
        shard.releases = Releases(s.releases, s.shard.threads, there)
        owed = Progress(
            TextColumn("vectors"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} owed"),
            console=self._out,
        )
        with owed as bar:
            task = bar.add_task("", total=None)
            while left := sum(map(self._owed, shard.groups.values())):
                self._go_on(HANDED_OVER)
                shard.turn()
                bar.update(task, completed=left)
        behind = [g.number for g in shard.groups.values() if g.phase == "replaying"]
        if behind:
            self._out.print(
                f"Redis has seen more of the groups {behind} than what is before {self._then}: afresh run "
                "writes their vectors once it has read as far."
            )

    @staticmethod
    def _owed(group: Group) -> int:
        """Vectors and deletions that can be written now: not before live records that Redis has seen."""
        if group.phase == "replaying":
            return 0
        return int(group.state.owed.sum()) + len(group.deletions())

    def _positions(self, groups: int) -> list[list[int]]:
        """Per group, per topic: the first offset to be read live."""
        topics = self._settings.source.topics
        if ":" in self._then and "T" not in self._then:
            return self._named_offsets(groups, topics)
        start: str | int = int(self._then) if self._then.isdigit() else self._then
        source = KafkaSource(
            msgspec.structs.replace(self._settings.source, start=start), self._settings.name, groups
        )
        try:
            return [source.start(group, None) for group in range(groups)]
        finally:
            source.close()

    def _named_offsets(self, groups: int, topics: tuple[str, ...]) -> list[list[int]]:
        found: dict[tuple[str, int], int] = {}
        for part in self._then.split(","):
            *topic, partition, offset = part.strip().rsplit(
                ":", 2 if len(topics) > 1 or part.count(":") > 1 else 1
            )
            if not (partition.isdigit() and offset.isdigit()) or (not topic and len(topics) > 1):
                raise SettingsError(
                    f"--then: {part!r} is not partition:offset, nor topic:partition:offset as several topics need."
                )
            found[topic[0] if topic else topics[0], int(partition)] = int(offset)
        wanted = {(topic, partition) for topic in topics for partition in range(groups)}
        if set(found) != wanted:
            raise SettingsError(
                f"--then names {sorted(found)}, and needs exactly {sorted(wanted)}: the offset of each partition."
            )
        return [[found[topic, group] for topic in topics] for group in range(groups)]


def _topics(snapshot: Path | None) -> list[str] | None:
    """What a snapshot's positions are of; None where there is none that can be read."""
    if snapshot is None:
        return None
    try:
        found: list[str] = Folder.open(snapshot).meta["topics"]
    except SnapshotError:
        return None
    return found

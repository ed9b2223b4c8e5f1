"""What runs in each process of the service: plain classes, made actors in `spawn.py`.

A thread does the work, so that `status` answers at once; the work's end, good or bad, is part of the status."""

import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from actors.candidate import ReleaseConfig
from actors.capacity import StateConfig, capacity
from actors.cut import Cut, columns, wide
from actors.decode import DecodeConfig, Decoder, make_decoder
from actors.embed import Releases
from actors.fetch import Fetcher
from actors.group import Group
from actors.images import Images
from actors.labels import LabelPorts, Labels, LabelsConfig
from actors.lease import refuse_replaced
from actors.mirror_kafka import KafkaMirror
from actors.orders import Orders
from actors.ports import LearnerPort
from actors.publish import Publish
from actors.quarantine import Quarantine
from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from actors.refetch import Refetch
from actors.refill import Refill
from actors.served import read_manifest, served
from actors.shard import Ports, Shard
from actors.shard_config import ShardConfig
from actors.source import KafkaDeadLetters, KafkaSource, SourceConfig, partitions
from learning.config import EncoderConfig, LearnerConfig
from schemas.errors import AfreshError, SinkDown, SourceDown, SourceError
from schemas.records import Told
from schemas.stats import LabelStats
from schemas.stream import StreamConfig

if TYPE_CHECKING:
    from actors.learn import Learn

log = structlog.get_logger()
LABELS_S = 30.0  # between two looks for a topic of labels that is not there


class Spec(msgspec.Struct, frozen=True):
    """What the processes need of the settings."""

    name: str
    folder: str
    groups: int  # of the whole stream
    stream: StreamConfig
    source: SourceConfig
    decode: DecodeConfig
    state: StateConfig
    shard: ShardConfig
    encoder: EncoderConfig
    learner: LearnerConfig
    release: ReleaseConfig
    redis: RedisConfig
    labels: LabelsConfig = LabelsConfig()

    @property
    def root(self) -> Path:
        return Path(self.folder)

    @property
    def releases(self) -> Path:
        return self.root / "releases"


@dataclass
class Status:
    """`error` once the work has ended badly, with `exit_code` where another start cannot mend it."""

    progress: int
    stats: Any = None
    finished: bool = False
    error: str | None = None
    exit_code: int | None = None


class Worker:
    """Runs `body(stopping)` in a thread. Subclasses say what the body is and what the stats are.

    epoch: of the lease, and of the restarts under it. Once a newer lease is there, the work ends."""

    def __init__(self, spec: Spec, epoch: int, nice: int = 0) -> None:
        os.nice(nice)
        self._root, self._lease, self._checked = spec.root, epoch >> 20, 0.0
        self._stop = threading.Event()
        self._end: Status | None = None
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
        self._thread.start()

    def body(self, stopping: Callable[[], bool]) -> None:
        raise NotImplementedError

    def stats(self) -> Any:
        raise NotImplementedError

    def status(self) -> Status:
        stats = self.stats()
        end = self._end
        progress = stats.progress if stats is not None else 0
        return (
            Status(progress, stats)
            if end is None
            else Status(progress, stats, end.finished, end.error, end.exit_code)
        )

    def stop(self) -> None:
        """Asks the work to drain and end; `status` tells when it has."""
        self._stop.set()

    def _stopping(self) -> bool:
        """Asked at each turn. Raises LeaseLost."""
        now = time.monotonic()
        if now - self._checked > 1.0:
            self._checked = now
            refuse_replaced(self._root, self._lease, "this process")
        return self._stop.is_set()

    def _run(self) -> None:
        try:
            self.body(self._stopping)
            self._end = Status(0, finished=True)
        except AfreshError as error:
            # what leaves a loop is what waiting cannot mend, but for servers that are down
            code = None if error.exit_code == 6 else error.exit_code
            log.error("process_ended", process=type(self).__name__, reason=str(error))
            self._end = Status(0, error=str(error), exit_code=code)
        except BaseException as error:
            log.error("process_failed", process=type(self).__name__, trace=traceback.format_exc())
            self._end = Status(0, error=f"{type(error).__name__}: {error}")


class ShardProcess(Worker):
    """Owns the groups given with their epochs."""

    def __init__(self, spec: Spec, groups: dict[int, int], learner: LearnerPort | None) -> None:
        self._spec, self._groups, self.learner = spec, groups, learner
        self._shard: Shard | None = None
        super().__init__(spec, next(iter(groups.values())))

    def connect(self, learner: Any) -> None:
        """A learner's process was replaced: training windows go to the new one."""
        if self.learner is not None:
            self.learner.connect(learner)  # type: ignore[attr-defined]

    def others(self, floor_us: int | None) -> None:
        """Event time of the slowest partition of all other shards."""
        if self._shard is not None:
            self._shard.skew.others(floor_us)

    def ask(self, entities: list[str]) -> None:
        """Names of those that are here are in the stats from now on."""
        if self._shard is not None:
            self._shard.asked = entities

    def body(self, stopping: Callable[[], bool]) -> None:
        self._shard = open_shard(self._spec, self._groups, self.learner)

        def stop() -> bool:  # asked at each turn
            if self.learner is not None:
                self.learner.poll()
            return stopping()

        self._shard.run(stop)

    def stats(self) -> Any:
        return self._shard.stats() if self._shard is not None else None


def open_shard(spec: Spec, groups: dict[int, int], learner: LearnerPort | None) -> Shard:
    """Everything that a shard of these groups (number -> epoch) needs, restored and connected."""
    stream = wide(spec.stream, spec.releases)
    shape, there = stream.shape, columns(stream)
    window, hidden, anchor = widths(spec.releases, spec.encoder)
    slots = capacity(spec.state, spec.groups, shape, window, hidden)
    config, mirror = spec.source, None
    if spec.stream.nodes and spec.groups > 1:
        config = config.with_mirror(spec.name)
        mirror = KafkaMirror(config, spec.name)
    source = KafkaSource(config, spec.name, spec.groups, spec.stream.images)
    opened = [
        Group.open(
            number,
            epoch,
            source.topics,
            spec.root / f"group-{number}",
            shape,
            (window, hidden, slots, spec.groups * slots, anchor),
            stream.columns,
        )
        for number, epoch in sorted(groups.items())
    ]
    for group in opened:
        group.quarantine = Quarantine(group.folder, source.topics)
        if spec.source.checks_partition:
            group.partitions = spec.groups
        if spec.stream.nodes:
            group.join(spec.groups)
    sink = RedisSink(spec.redis, spec.name)
    try:
        for warning in sink.check():
            log.warning("redis", warning=warning)
    except SinkDown as error:
        log.warning(
            "sink_down", reason=str(error), next="state fills; vectors wait until it answers"
        )
    ports = Ports(
        source,
        make_decoder(stream, spec.decode),
        sink,
        KafkaDeadLetters(config, spec.name),
        Releases(spec.releases, spec.shard.threads, there),
        learner,
        mirror,
    )
    skew_us = spec.source.max_skew_us(spec.stream.nodes)
    images = images_of(stream, opened, ports.decoder)
    shard = Shard(spec.shard, opened, ports, max_skew_us=skew_us, images=images)
    shard.offers.cut = Cut.of(columns(spec.stream), there)
    if any(group.lacking for group in opened):
        again = msgspec.structs.replace(spec.source, start="earliest")
        shard.refill = Refill(KafkaSource(again, spec.name, spec.groups), ports.decoder, opened)
    return shard


def widths(releases: Path, encoder: EncoderConfig) -> tuple[int, int, int]:
    """Rows of a ring, H, and L of what is served: where there are releases they say that, for the settings may have
    been changed since."""
    now = served(releases)
    numbers = [number for number in (now.release, now.next) if number]
    found = [read_manifest(releases / str(number)) for number in numbers]
    window = max([encoder.window, *(m.window for m in found)])
    if not found:
        return window, encoder.kept, window
    return window, found[0].kept, found[0].window


def images_of(stream: StreamConfig, groups: list[Group], decoder: Decoder) -> Images | None:
    """What a shard of images has beside its groups, which get what fetches theirs again."""
    if not stream.images:
        return None
    from actors.decode_images import ImageDecoder

    assert isinstance(decoder, ImageDecoder)
    if stream.shape.kept_uri:
        fetcher = Fetcher(stream.image)
        for group in groups:
            group.served.refetch = Refetch(fetcher, decoder.pixels)
    return Images(stream.image, stream.shape)


class LearnProcess(Worker):
    """Owns the learner. Only this process and the publisher's import torch."""

    def __init__(self, spec: Spec, epoch: int) -> None:
        self._spec, self._epoch = spec, epoch
        self._learn: Learn | None = None
        self._early: list[Any] = []  # what comes while torch loads: the stream may be short
        super().__init__(spec, epoch, nice=10)

    def offer(self, parts: list[Any]) -> bool:
        if self._learn is not None:
            return self._learn.offer(parts)
        size = sum(windows.nbytes for _, _, windows in (*self._early, *parts))
        if self._early and size > self._spec.learner.queue_bytes:
            return False
        self._early += parts
        return True

    def describe(self, told: Told) -> bool:
        return self._learn is not None and self._learn.describe(told)

    def forget(self, entities: list[int]) -> bool:
        """Whether they will be gone, also after a crash. False while it loads: ask again."""
        return self._learn is not None and self._learn.forget(entities)

    def order(self, orders: Orders) -> None:
        if self._learn is not None:
            self._learn.orders = orders

    def body(self, stopping: Callable[[], bool]) -> None:
        from actors.learn import Learn

        s = self._spec
        folder = s.root / "learner"
        learn = Learn(s.learner, s.encoder, s.stream.shape, folder, self._epoch, s.release)
        learn.name_columns(s.stream.columns)
        early, self._early = self._early, []
        if early:
            learn.offer(early)
        self._learn = learn
        learn.run(stopping)

    def stats(self) -> Any:
        return self._learn.stats() if self._learn is not None else None


class PublishProcess(Worker):
    """Owns the releases."""

    def __init__(self, spec: Spec, epoch: int) -> None:
        self._publish = Publish(
            spec.root,
            spec.stream,
            spec.encoder,
            spec.release,
            RedisSink(spec.redis, spec.name),
            epoch,
        )
        super().__init__(spec, epoch, nice=10)

    def groups(self, oldest: int, filled: int) -> None:
        """The oldest release that some live group's state still carries (0: none), and the one of another
        generation that all of them have filled."""
        self._publish.oldest_release, self._publish.filled = oldest, filled

    def body(self, stopping: Callable[[], bool]) -> None:
        self._publish.run(stopping)

    def stats(self) -> Any:
        return self._publish.stats()


class LabelProcess(Worker):
    """Reads the topic of labels."""

    def __init__(self, spec: Spec, epoch: int) -> None:
        self._spec, self._epoch = spec, epoch
        self._labels: Labels | None = None
        self._waiting = LabelStats(up=False)
        super().__init__(spec, epoch, nice=10)

    def body(self, stopping: Callable[[], bool]) -> None:
        """A topic that is not there is waited for: the stream is not unwell for it."""
        while self._labels is None and not stopping():
            try:
                self._labels = open_labels(self._spec, self._epoch)
            except (SourceError, SourceDown) as error:
                log.error("labels_wait", reason=str(error), next=f"again in {LABELS_S:.0f} s")
                self._wait(stopping)
        if self._labels is not None:
            self._labels.run(stopping)

    def _wait(self, stopping: Callable[[], bool]) -> None:
        until = time.monotonic() + LABELS_S
        while time.monotonic() < until and not stopping():
            self._waiting.progress += 1
            time.sleep(0.2)

    def stats(self) -> Any:
        return self._waiting if self._labels is None else self._labels.stats()


def open_labels(spec: Spec, epoch: int) -> Labels:
    """The reader of the topic of labels, restored and connected."""
    config = spec.labels.source(spec.source, spec.name)
    groups = partitions(config)
    source, dead_letters = (
        KafkaSource(config, spec.name, groups),
        KafkaDeadLetters(config, spec.name),
    )
    ports = LabelPorts(source, dead_letters, RedisSink(spec.redis, spec.name))
    return Labels(spec.labels, spec.root / "labels", epoch, ports, groups)

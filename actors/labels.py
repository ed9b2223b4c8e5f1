"""Labels that come on a topic of their own: how well served vectors foretell them, and what the gate `probe` asks.

A label is of an entity. It is foretold from the entity's vector as Redis has it when the label comes, then learnt
from. Nothing here touches the stream: a bad label is a dead letter of its topic, one of an entity without a vector is
counted."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import safetensors.numpy
import structlog

from actors.decode import DecodeConfig, make_decoder
from actors.folders import Folder, folders, newest, next_name, prune, write_folder
from actors.ports import Batch, DeadLetters, Source
from actors.sink import Current, Sink, Stored
from actors.usage import cpu_s, resident_bytes
from learning.probe import Prequential
from schemas.errors import SettingsError, SinkDown, SnapshotError, SourceDown, SourceError
from schemas.records import F32, I64, Decoded, category_hash
from schemas.stats import LabelStats
from schemas.stream import Field, FieldType, StreamConfig

if TYPE_CHECKING:
    from actors.kafka_config import SourceConfig

log = structlog.get_logger()
KNOWN_FILE, NAMES_FILE = "known.safetensors", "names.json"
POLL_S, MOST = 0.2, 1000  # of a turn
AT_ONCE = 500  # vectors that Redis is asked for
SAVE_S = 60.0
FILLED = 0.5  # of what is known, in a Redis that is not being filled again
AGAIN_S = 10.0  # between two looks whether it is
RENEW_S = (
    300.0  # vectors of what is known are read anew so often, and when another release is served
)


class LabelsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[labels]`: a topic of JSON records, each a label of an entity. Without a topic there are none."""

    topic: str = ""
    entity: str = "entity"  # path of the entity's name
    label: str = "label"  # path of what is said of it: a text or an integer
    time: str = "time"  # path of when; of an entity's labels the newest counts

    def source(self, source: "SourceConfig", stream: str) -> "SourceConfig":
        """Reads the topic in the same way as the stream's, under a group of its own."""
        if self.topic in source.topics:
            raise SettingsError(
                f"labels.topic is {self.topic!r}, which source.topics names too: labels come on a topic of their "
                "own. Change one of them."
            )
        group = f"{source.group or f'afresh-{stream}'}-labels"
        return msgspec.structs.replace(
            source, topics=(self.topic,), group=group, check_partition=False
        )

    @property
    def stream(self) -> StreamConfig:
        """Labels as records of one field."""
        return StreamConfig(
            self.entity, self.time, (Field("label", FieldType.category, self.label),)
        )


class LabelPorts(NamedTuple):
    """Neighbours of the reader of labels."""

    source: Source
    dead_letters: DeadLetters
    sink: Sink


class Labels:
    """`groups`: partitions of the topic."""

    def __init__(
        self,
        config: LabelsConfig,
        folder: Path,
        epoch: int,
        ports: LabelPorts,
        groups: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._epoch, self._clock = folder, epoch, clock
        self._source, self._dead_letters, self._sink = ports
        self._decoder = make_decoder(config.stream, DecodeConfig())
        self._probe = Prequential()
        self._names = dict[int, str]()  # of whom a label is known, by category_hash
        self._positions = dict[int, list[int]]()
        self._current: Current | None = None
        self._emptied_at: float | None = None  # when few were found there
        self._look_at = 0.0
        self._waiting = list[Batch]()  # while Redis is down
        self._stats = LabelStats()
        self._config = msgspec.to_builtins(config)
        try:
            newest(folder, self._restore)
        except SnapshotError as error:  # labels come again, or others do
            log.error("labels_unusable", reason=str(error), next="they are read from source.start")
        for group in range(groups):
            self._begin(group)
        self._saved_at = self._renewed_at = clock()
        self._unsaved = False

    def _begin(self, group: int) -> None:
        """Where it stopped; where Kafka no longer has that, as a service without a snapshot begins."""
        try:
            self._positions[group] = self._source.start(group, self._positions.get(group))
        except SourceError as error:
            log.error("labels_lost", reason=str(error), next="they are read from source.start")
            self._positions[group] = self._source.start(group, None)

    def run(self, stopping: Callable[[], bool]) -> None:
        while not stopping():
            self.turn()
            if self._current is None or not self._stats.up:
                time.sleep(POLL_S)
        self.save()
        self._source.close()
        self._dead_letters.close()

    def turn(self) -> None:
        """Takes what came; before the first release, and while Redis is down, it waits."""
        self._stats.progress += 1
        try:
            self._look()
            if self._current is not None and not self._waiting:
                self._waiting = self._source.poll(MOST, POLL_S)
            while self._waiting and self._current is not None:
                self._take(self._waiting[0])
                del self._waiting[0]
        except (SinkDown, SourceDown) as error:
            self._down(str(error))
        else:
            self._stats.up = True
        if self._unsaved and self._clock() - self._saved_at > SAVE_S:
            self.save()
        s = self._stats
        s.known, s.accuracy = len(self._names), self._probe.accuracy
        s.average_precision = self._probe.precision
        s.memory_bytes, s.cpu_s = resident_bytes(), cpu_s()

    def _down(self, reason: str) -> None:
        if self._stats.up:
            log.warning("labels_wait", reason=reason)
        self._stats.up = False

    def stats(self) -> LabelStats:
        return self._stats

    def _look(self) -> None:
        """Vectors of what is known, by the release that is served now; those who are gone are known no more. Where most
        are, Redis was emptied and is being filled again: labels wait for it, but not for ever."""
        current = self._sink.read_current()
        now = self._clock()
        if current is None or now < self._look_at:
            return
        if current == self._current and now - self._renewed_at < RENEW_S:
            return
        names = [self._names[entity] for entity in self._probe.entity.tolist()]
        vectors, there = self._read(names, current)
        if len(there) < FILLED * len(names):
            since = self._emptied_at = now if self._emptied_at is None else self._emptied_at
            if now - since < RENEW_S:
                self._current, self._look_at = None, now + AGAIN_S
                return
        self._current, self._renewed_at, self._emptied_at = current, now, None
        self._probe.keep(there)
        self._probe.renew(vectors)
        self._names = {e: self._names[e] for e in self._probe.entity.tolist()}

    def _read(self, names: Sequence[str], current: Current) -> tuple[F32, I64]:
        """Vectors of those who have one, and which they are."""
        generation, dim = current.generation, current.dim
        found = list[Stored | None]()
        for at in range(0, len(names), AT_ONCE):
            found += self._sink.read(generation, list(names[at : at + AT_ONCE]))
        vectors = {
            i: s.vector for i, s in enumerate(found) if s is not None and len(s.vector) == dim
        }
        stacked = np.array(list(vectors.values()), np.float32).reshape(len(vectors), dim)
        return stacked, np.array(list(vectors), np.int64)

    def _take(self, batch: Batch) -> None:
        decoded, bad = self._decoder.decode(
            batch.topic, batch.offsets, batch.timestamps_ms, batch.keys, batch.values
        )
        missing = decoded.rows.missing[:, 0] & ~decoded.deleted
        self._add(decoded, np.flatnonzero(~missing & ~decoded.deleted))
        gone = [category_hash(decoded.entities[i]) for i in np.flatnonzero(decoded.deleted)]
        self._forget(np.array(gone, np.int64))
        for b in bad:
            self._dead_letters.send(batch, b.at, b.error, b.reason, b.row)
        self._count("bad", len(bad) + int(missing.sum()))
        self._positions[batch.group][batch.topic] = batch.next_offset
        self._unsaved = True

    def _add(self, decoded: Decoded, which: I64) -> None:
        names = [decoded.entities[i] for i in which.tolist()]
        assert self._current is not None
        vectors, there = self._read(names, self._current)
        self._count("taken", len(there))
        self._count("no_vector", len(names) - len(there))
        if not len(there):
            return
        kept = [names[i] for i in there.tolist()]
        entity = np.array([category_hash(name) for name in kept], np.int64)
        rows = decoded.rows.take(which[there])
        self._probe.add(entity, rows.categories[:, 0], rows.time_us, vectors)
        self._names |= dict(zip(entity.tolist(), kept, strict=True))
        self._names = {e: self._names[e] for e in self._probe.entity.tolist()}

    def _forget(self, entities: I64) -> None:
        if len(entities):
            self._probe.keep(~np.isin(self._probe.entity, entities))
            self._names = {e: self._names[e] for e in self._probe.entity.tolist()}

    def _count(self, result: str, more: int) -> None:
        self._stats.labels[result] = self._stats.labels.get(result, 0) + more

    # -- snapshots --------------------------------------------------------------------------------

    def save(self) -> None:
        """What is known, and how far was read. Vectors are Redis's, and are read again."""
        self._saved_at = self._clock()
        name = next_name(self._folder, self._epoch)
        positions = {str(group): at for group, at in self._positions.items()}
        meta = {"positions": positions, "labels": self._config}
        try:
            self._dead_letters.flush()
            write_folder(self._folder, name, self._files(), lambda: meta)
        except (OSError, SnapshotError, SourceDown) as error:
            log.error("snapshot_failed", of="labels", reason=str(error), next="tried again in time")
            return
        self._unsaved = False
        for group, at in self._positions.items():
            self._source.commit(group, at)
        prune(self._folder, 2, name)

    def _files(self) -> Iterator[tuple[str, bytes]]:
        p = self._probe
        columns = {"entity": p.entity, "label": p.label, "time_us": p.time_us}
        yield KNOWN_FILE, safetensors.numpy.save({k: v.copy() for k, v in columns.items()})
        yield NAMES_FILE, json.dumps([self._names[e] for e in p.entity.tolist()]).encode()

    def _restore(self, folder: Folder) -> bool:
        if folder.meta["labels"] != self._config:  # others are read now
            return True
        columns, p = folder.tensors(KNOWN_FILE), self._probe
        p.entity, p.label, p.time_us = (columns[k] for k in ("entity", "label", "time_us"))
        p.vector = np.zeros((len(p.entity), 0), np.float32)
        self._names = dict(zip(p.entity.tolist(), json.loads(folder.read(NAMES_FILE)), strict=True))
        self._positions = {int(g): at for g, at in folder.meta["positions"].items()}
        return True


def known(folder: Path) -> dict[int, int]:
    """The newest label of each entity, both as category_hash, as it was saved last; empty where nothing can be read."""
    for path in folders(folder):
        with suppress(SnapshotError):  # the owner may be replacing it just now
            found = Folder.open(path).tensors(KNOWN_FILE)
            return dict(zip(found["entity"].tolist(), found["label"].tolist(), strict=True))
    return {}

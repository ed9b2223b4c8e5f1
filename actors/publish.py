"""Releases: from a durable learner snapshot to what readers and shards may trust.

candidate > files > `encoder:<release>` > `current`. A release that a check refuses keeps its files in `refused/` and
changes nothing for anybody. One that begins another generation is filled beside the served one first:
`releases/current` names it as `next`, shards write its vectors too, and once every entity has one, readers are
told."""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import structlog

from actors import requests
from actors.candidate import Order, Refused, ReleaseConfig, Workshop
from actors.cut import Columns, Cut, columns, wide
from actors.folders import Folder, folders
from actors.lease import refuse_replaced
from actors.redis_sink import RedisSink
from actors.served import (
    REFUSED,
    Served,
    current_release,
    give_up,
    numbers,
    read_manifest,
    read_release,
    served,
    set_current,
    set_served,
    usable_release,
)
from actors.sink import Current, Kind, Value
from actors.usage import cpu_s, resident_bytes
from learning.config import EncoderConfig
from schemas.errors import ReleaseError, SinkDown
from schemas.published import Manifest
from schemas.stats import PublisherStats
from schemas.stream import StreamConfig

log = structlog.get_logger()
KEEP = 10
AGAIN_US = 60e6  # after so long what Redis or the disk refused is tried again
NAN = float("nan")
STEPS = 10  # of removing an old generation, in one turn


class Publish:
    """`oldest_release`: the oldest one that some live group's state carries; 0 where none does, below zero
    until the groups have said so: releases wait for that. `filled`: the release of another generation of which all
    entities of all groups have a vector; 0: none."""

    def __init__(
        self,
        root: Path,
        stream: StreamConfig,
        encoder: EncoderConfig,
        config: ReleaseConfig,
        sink: RedisSink,
        epoch: int,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.oldest_release, self.filled = -1, 0
        self._root, self._releases = root, root / "releases"
        self._refused = self._releases / REFUSED
        self._config, self._stream = config, stream
        self._workshop = Workshop(root, stream, encoder, config)
        self._widest = encoder.window
        self._sink, self._epoch, self._wall = sink, epoch, wall
        self._stats = PublisherStats()
        self._announced = 0  # the release that Redis is known to name
        self._there: set[int] = set()  # releases that Redis is known to hold
        self._tried = ""  # the newest learner snapshot that was looked at
        self._told: Current | None = None  # what Redis names
        self._manifests: dict[int, Manifest] = {}
        self._held_up = False  # readers cannot go over, which was logged
        self._dropped, self._cursor = 0, 0  # generation that is being removed, and how far
        self._drop_at_us = self._check_at_us = 0.0

    def run(self, stopping: Callable[[], bool]) -> None:
        while not stopping():
            self.turn()
            self._stats.progress += 1
            time.sleep(0.2)

    def turn(self) -> None:
        """Tells Redis of the current release where it does not know it; releases what is due."""
        self._check_turn()
        asked = requests.take(self._releases)
        if asked is not None and asked.rollback:
            self._roll_back(asked.rollback)
        now = served(self._releases)
        if now.next:
            self._switch_turn(now)
        current = current_release(self._releases)
        self._tell(current)
        self._drop_turn()
        self._stats.held = requests.held(self._releases)
        filling = served(self._releases).next
        if asked is not None and not asked.rollback:
            self._tried = ""  # also one that was refused
            if not filling:
                self._release_newest(current, force=asked.force)
        elif not (self._stats.held or filling) and self.oldest_release in (0, current):
            self._release_newest(current)
        self._stats.requests += asked is not None
        if current:
            self._describe(self._manifest(current))
        self._stats.next_release = served(self._releases).next
        self._stats.memory_bytes, self._stats.cpu_s = resident_bytes(), cpu_s()

    def _check_turn(self) -> None:
        """Now and then: is what is served still whole on disk? A shard that starts would find nothing to serve with."""
        now_us = self._wall() * 1e6
        if now_us < self._check_at_us:
            return
        self._check_at_us = now_us + AGAIN_US
        refuse_replaced(self._root, self._epoch >> 20, "this publisher")
        try:
            usable_release(self._releases)
        except (ReleaseError, OSError) as error:
            log.error("releases_damaged", reason=str(error), next="looked at again")

    def _tell(self, current: int) -> None:
        """Lets Redis name and hold the current release: also one that was emptied or set back under us."""
        try:
            if self._sink.server_changed():
                self._announced, self._there = 0, set()
            told = self._told = self._sink.read_current()
            if current and not self._ahead(told):  # else the disk follows, see _switch_turn
                if told is None:
                    self._there = set()
                if told is None or told.release != current or self._announced != current:
                    self._announce(current)
            self._stats.sink_up, self._stats.sink_error = True, ""
        except SinkDown as error:
            if not self._stats.sink_error:
                log.error(
                    "release_not_told", release=current, reason=str(error), next="tried again"
                )
            self._stats.sink_up, self._stats.sink_error = False, str(error)

    def _describe(self, m: Manifest) -> None:
        s = self._stats
        s.release, s.generation = m.release, m.generation
        s.release_age_s = max(self._wall() - m.created_us / 1e6, 0.0)
        o = m.overlap_previous
        s.overlap_cosine, s.overlap_neighbours = (o.cosine, o.neighbours) if o else (NAN, NAN)

    def stats(self) -> PublisherStats:
        return self._stats

    # -- a release --------------------------------------------------------------------------------

    def _roll_back(self, release: int) -> None:
        """Serves an older release again. None follows by itself until somebody asks for one."""
        try:
            manifest, _ = read_release(self._releases / str(release))
            self._refuse_unfit(manifest)
        except ReleaseError as error:
            log.error("rollback_refused", release=release, reason=str(error))
            return
        refuse_replaced(self._root, self._epoch >> 20, "this publisher")
        now = served(self._releases)
        try:
            requests.hold(self._releases, f"rolled back to {release}")
            if now.next:
                self._give_up()
            if manifest.generation == self._manifest(now.release).generation:
                with suppress(SinkDown):
                    self._put(release, needed=True)
                set_current(self._releases, release)
            else:
                self._open(manifest)
        except OSError as error:  # the disk is full
            requests.resume(self._releases)
            log.error("rollback_refused", release=release, reason=str(error))
            return
        log.warning("rolled_back", release=release, next="no release until `afresh release`")

    def _refuse_unfit(self, manifest: Manifest) -> None:
        """Rings are as long and as wide as settings and served release say: a longer window is not there, nor is a
        field that neither names, or a side."""
        try:
            Cut.of(Columns.released(manifest), columns(wide(self._stream, self._releases)))
        except KeyError as lacking:
            raise ReleaseError(
                f"release {manifest.release} reads {lacking.args[0]}, which records are read for no more: name it "
                "again under [stream] and start the daemon anew."
            ) from None
        widest = max(self._widest, self._manifest(current_release(self._releases)).window)
        if manifest.window > widest:
            raise ReleaseError(
                f"release {manifest.release} has window {manifest.window}, and entities' rings hold {widest} rows: "
                f"set encoder.window = {manifest.window} and start the daemon anew."
            )

    def _release_newest(self, current: int, force: bool = False) -> None:
        found = folders(self._root / "learner")
        if not found or found[0].name == self._tried:
            return
        self._tried = found[0].name
        before = self._manifest(current) if current else None
        if before is not None and before.snapshot == found[0].name:
            return
        told = self._told.release if self._told else 0  # where the disk has lost its releases
        there = numbers(self._releases)
        number = 1 + max([current, told, *there, *numbers(self._refused)])
        newest = max([self._told.generation if self._told else 0, *map(self._generation_of, there)])
        first = [n for n in there if before and self._generation_of(n) == before.generation]
        began = time.monotonic()
        try:
            snapshot = Folder.open(found[0])
            if not self._workshop.ours(snapshot):
                return  # of the settings before: the learner has only just begun anew
            created_us = int(self._wall() * 1e6)
            order = Order(number, newest, min(first, default=0), created_us, force)
            manifest = self._workshop.build(snapshot, order, before)
        except Exception as error:  # whatever the exporter raises, the release before goes on
            checks = error.gates if isinstance(error, Refused) else ("export",)
            for check in checks:
                self._stats.refused[check] = self._stats.refused.get(check, 0) + 1
            log.error(
                "release_refused",
                release=number,
                reason=str(error),
                next="the one before is served",
            )
            for old in numbers(self._refused)[KEEP:]:
                shutil.rmtree(self._refused / str(old), ignore_errors=True)
            return
        finally:
            measured = self._workshop.measured
            self._stats.gate_values = {g.name: g.value for g in measured}
            self._stats.gate_thresholds = {g.name: g.threshold for g in measured}
        self._stats.export_s = time.monotonic() - began
        requests.resume(self._releases)
        if before is not None and manifest.generation != before.generation:
            self._open(manifest)
        else:
            self._switch(number)
        self._stats.releases += 1
        log.info("released", release=number, updates=manifest.updates, seconds=self._stats.export_s)

    def _switch(self, number: int) -> None:
        """Readers find the release in Redis before any vector of it: shards follow the disk."""
        refuse_replaced(self._root, self._epoch >> 20, "this publisher")
        with suppress(SinkDown):
            self._put(number, needed=True)
        set_current(self._releases, number)
        self._tell(number)

    # -- generations ------------------------------------------------------------------------------

    def _open(self, manifest: Manifest) -> None:
        """Shards fill it from now on; readers stay where they are."""
        refuse_replaced(self._root, self._epoch >> 20, "this publisher")
        with suppress(SinkDown):
            self._put(manifest.release, needed=True)
        now, generation = served(self._releases), manifest.generation
        left_us = {g: us for g, us in now.left_us.items() if g != generation}
        self.filled = 0
        opened = replace(now, next=manifest.release, generation=generation, left_us=left_us)
        set_served(self._releases, opened)
        log.info("generation_filled", release=manifest.release, generation=generation)

    def _give_up(self) -> None:
        """It is removed once shards have noticed: what they still write would stay, whoever is deleted later."""
        grace_us = self._config.generation.grace_s * 1e6
        give_up(self._releases, int(self._wall() * 1e6 - grace_us + AGAIN_US))

    def _ahead(self, told: Current | None) -> bool:
        """Whether readers follow the release that is being filled: we were killed in the middle, or the disk was
        full."""
        return told is not None and told.release == served(self._releases).next

    def _switch_turn(self, now: Served) -> None:
        """Readers go over to another generation once every entity is in it: they are told first, for shards write
        the old one only until they know."""
        if self.filled != now.next and not self._ahead(self._told):
            return
        refuse_replaced(self._root, self._epoch >> 20, "this publisher")
        old = self._generation_of(now.release)
        kind: Kind = "rollback" if now.next < now.release else "release"
        try:
            new = self._manifest(now.next)
            self._put(now.next, needed=True)
            told = Current(new.release, new.generation, new.dim)
            self._sink.set_current(told, self._epoch, kind)
            left_us = {**now.left_us, old: int(self._wall() * 1e6)}
            left_us.pop(new.generation, None)
            set_served(self._releases, Served(now.next, now.swap + 1, 0, 0, left_us))
        except (SinkDown, OSError) as error:  # Redis is down, or the disk is full
            if not self._held_up:  # it is tried at every turn
                log.error(
                    "generation_not_served", release=now.next, reason=str(error), next="again"
                )
            self._held_up = True
            return
        except ReleaseError as error:
            log.error("release_damaged", release=now.next, reason=str(error), next="given up")
            self._give_up()
            return
        self._announced, self.filled, self._held_up = 0, 0, False
        log.warning("generation_served", generation=new.generation, release=new.release)

    def _drop_turn(self) -> None:
        """Removes generations that readers left `grace_s` ago, some keys at a time."""
        now = served(self._releases)
        grace_us, now_us = self._config.generation.grace_s * 1e6, self._wall() * 1e6
        due = [g for g, us in now.left_us.items() if now_us - us >= grace_us]
        if not due or now_us < self._drop_at_us:
            return
        if due[0] != self._dropped:
            self._dropped, self._cursor = due[0], 0
        try:
            for _ in range(STEPS):
                self._cursor = self._sink.drop_generation(due[0], self._cursor)
                if not self._cursor:
                    break
            if not self._cursor:
                left_us = {g: us for g, us in now.left_us.items() if g != due[0]}
                set_served(self._releases, replace(now, left_us=left_us))
                log.info("generation_removed", generation=due[0])
        except (SinkDown, OSError) as error:
            self._drop_at_us = now_us + AGAIN_US
            log.error("generation_not_removed", generation=due[0], reason=str(error))

    def _generation_of(self, release: int) -> int:
        """0 where its manifest cannot be read."""
        try:
            return self._manifest(release).generation
        except ReleaseError:
            return 0

    def _manifest(self, release: int) -> Manifest:
        """Read once: a disk that fails later concerns no release that is served already."""
        if release not in self._manifests:
            self._manifests[release] = read_manifest(self._releases / str(release))
        return self._manifests[release]

    # -- Redis and disk ---------------------------------------------------------------------------

    def _announce(self, current: int) -> None:
        """Releases that Redis lacks, then `current`: whoever reads the one finds the other. Old ones go."""
        now, there = served(self._releases), numbers(self._releases)
        used = {current, self.oldest_release, now.next}
        kept = {*there[: self._config.keep_redis], *used} & set(there)
        for number in sorted(kept - self._there):
            self._put(number, needed=number == current)
        manifest = self._manifest(current)
        told = self._sink.read_current()
        kind: Kind = "rollback" if told is not None and current < told.release else "release"
        self._sink.set_current(
            Current(current, manifest.generation, manifest.dim), self._epoch, kind
        )
        for number in there:
            if number not in kept:
                self._sink.drop_release(number, self._epoch)
                self._there.discard(number)
        generation = manifest.generation
        first = min((n for n in there if self._generation_of(n) == generation), default=0)
        for number in there[max(KEEP, self._config.keep_redis) :]:
            if number not in kept and number != first:  # that is compared with
                shutil.rmtree(self._releases / str(number), ignore_errors=True)
                self._manifests.pop(number, None)
        self._announced = current

    def _put(self, release: int, *, needed: bool) -> None:
        """`encoder:<release>`, from disk. One that is damaged there is passed over, unless `needed`."""
        try:
            manifest, found = read_release(self._releases / str(release))
        except ReleaseError as error:
            if needed:
                raise
            log.error("release_damaged", release=release, reason=str(error), next="passed over")
            return
        text = msgspec.json.encode(manifest).decode()
        graphs: dict[str, Value] = {
            "onnx" if graph == "encode" else f"{graph}_onnx": data for graph, data in found.items()
        }
        graphs["sha256"] = manifest.encode_sha256
        self._sink.publish_release(release, manifest.generation, graphs, text, self._epoch)
        self._there.add(release)

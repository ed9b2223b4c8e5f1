"""The path record -> Redis of a set of partition groups: source > decode > state > encode > sink.

`Shard.turn` is one turn of the loop and the only thing that changes state; `run` turns until told to stop.
No turn waits for the learner, and none waits longer than the poll for anything but Redis, within its timeouts."""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import structlog

from actors.budget import Budget
from actors.decode import BadRecord, Decoder
from actors.embed import Releases
from actors.generation import Generation
from actors.group import Group
from actors.images import Images
from actors.offers import Offers
from actors.ports import Batch, DeadLetters, LearnerPort, Mirror, Source
from actors.refill import Refill
from actors.rejected import discreet
from actors.rolling import Rolling
from actors.shard_config import ShardConfig
from actors.sink import Sink, Vectors, WriteResult
from actors.skew import Part, Piece, Skew
from actors.usage import cpu_s, resident_bytes
from schemas.errors import SinkDown, SourceDown
from schemas.records import I64, Decoded, Windows, category_hash
from schemas.stats import LATENCY_BOUNDS_S, LETTERS, BadLetter, Latency, ShardStats

LOOK_S = 1.0  # how often a quiet shard asks whether Redis still holds what it wrote
log = structlog.get_logger()


@dataclass(frozen=True)
class Ports:
    """A shard's neighbours."""

    source: Source
    decoder: Decoder
    sink: Sink
    dead_letters: DeadLetters
    releases: Releases
    learner: LearnerPort | None = None
    mirror: Mirror | None = None  # of a graph in several groups


@dataclass(frozen=True, slots=True)
class Posted:
    """A write that Redis has not answered yet, and what it was of."""

    group: Group
    slots: I64
    deletions: list[str]
    parts: list[Decoded]
    answer: Callable[[], WriteResult]


class Shard:
    """`groups` are opened and unstarted."""

    def __init__(
        self,
        config: ShardConfig,
        groups: list[Group],
        ports: Ports,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        max_skew_us: int = 0,
        images: Images | None = None,
    ) -> None:
        self.config, self.groups = config, {g.number: g for g in groups}
        self.source, self.decoder, self.sink = ports.source, ports.decoder, ports.sink
        self.dead_letters, self.releases = ports.dead_letters, ports.releases
        self.mirror, source = ports.mirror, ports.source
        self._clock, self._wall = clock, wall
        self._stats = ShardStats(source_up=True)
        self._reported = ShardStats()
        self._reported_at = -1.0
        self.images = images
        if images is not None:
            images.stats = self._stats
            for group in groups:
                group.served.images = images
                images.fit(group.state.slots)
        self.offers = Offers(ports.learner, groups, config, self._stats, clock)
        self._encoding = Budget(config.encode_share, clock)
        # an image may take a second of the backbone, and a chunk is a turn: how many fit in one is found out
        self._least = 16 if images is None else 1
        self._chunk = 32 if images is None else 1
        self._look_at = clock() + LOOK_S
        self._sink_up = True
        self._posted: Posted | None = None
        parts = {
            (g.number, topic): g.edges is not None and topic == g.edges.mirror
            for g in groups
            for topic in range(len(source.topics))
        }
        self.skew = Skew(max_skew_us, parts, source.idle, clock, wall)
        self._closed: set[Part] = set()  # paused partitions
        self.refill: Refill | None = None
        self.asked: list[str] = []  # entities whose names somebody asks for; from any thread
        self.snapshots = Rolling(
            groups,
            config.snapshot_every_s,
            source,
            self._settle,
            self._flush,
            lambda: self.offers.forgets,
            clock,
        )
        for group in groups:
            group.positions = source.start(group.number, group.positions or None)

    def run(self, stopping: Callable[[], bool]) -> None:
        """Turns until `stopping`, then drains: a last snapshot of every group."""
        while not stopping():
            self.turn()
        self.drain()

    def turn(self, max_records: int | None = None) -> int:
        """Polls once and takes what came all the way to Redis. Returns how many records came; where none
        did, how many were taken that had waited."""
        if self.releases.refresh(bound=self.snapshots.under_way):
            self._swap()
        self._follow()
        self._sink_turn()
        self._open_and_close()
        most = max_records or self.config.max_records
        if self.images is not None:
            most = min(most, self.images.most)
        room = True
        try:
            # Kafka does not take what other groups must know: more of it would fill the memory
            room = self.mirror is None or self.mirror.wait_for_room(self.config.poll_s)
            wait_s = 0.0 if self.skew.more() else self.config.poll_s
            batches = self.source.poll(most, wait_s) if room else []
            self._stats.source_up = self.source.up and room
        except SourceDown as error:
            log.warning("source_down", reason=str(error))
            self._stats.source_up, batches = False, []
        for batch in batches:
            self._decode(batch)
        by_group: dict[int, list[Piece]] = {}
        if room and self._sink_up:
            for piece in self.skew.ready():
                by_group.setdefault(piece.part[0], []).append(piece)
        else:
            self.skew.rest()
        for number, mine in by_group.items():
            self._take(self.groups[number], mine)
        self.offers.turn()
        came = sum(len(batch.offsets) for batch in batches)
        if came < most:  # else more is waiting: Redis and we work at the same time
            self._settle()
        quiet = not (batches or by_group)
        if quiet:
            self._look_at_redis()
        self._refill_turn(idle=quiet)
        self._spread_news(idle=quiet)
        self._pay_owed(idle=quiet)
        ended = self.refill is not None and not self.refill.left
        pause = self.snapshots.turn(begin=not (self.releases.waits or ended))
        if pause is not None:
            self._observe(self._stats.snapshot_pause, pause)
        self._stats.progress += 1
        self._report()
        return came or sum(len(p.decoded.entities) for mine in by_group.values() for p in mine)

    # -- records ----------------------------------------------------------------------------------

    def _open_and_close(self) -> None:
        """Nothing is read while Redis is down, nor of a partition of which something waits."""
        parts = [(g, topic) for g in self.groups for topic in range(len(self.source.topics))]
        closed = {part for part in parts if not self._sink_up or self.skew.waits(part)}
        for part in closed - self._closed:
            self.source.pause(*part)
        for part in self._closed - closed:
            self.source.resume(*part)
        self._closed = closed

    def _decode(self, batch: Batch) -> None:
        group, part = self.groups[batch.group], (batch.group, batch.topic)
        reached = self.skew.reached(part, group.positions[batch.topic])
        batch, decoded, bad = group.decode(batch, self.decoder, reached)
        for b in bad:
            self.dead_letters.send(batch, b.at, b.error, b.reason, b.row)
            self._stats.dead_letters[b.error] = self._stats.dead_letters.get(b.error, 0) + 1
        self._show(batch, bad[-LETTERS:])
        self.skew.put(part, decoded, max(reached, batch.next_offset))

    def _show(self, batch: Batch, bad: list[BadRecord]) -> None:
        """The newest bad records, for people to look at."""
        topic = self.source.topics[batch.topic]
        newest = [
            BadLetter(
                b.error, discreet(b.error, b.reason), topic, batch.group,
                int(batch.offsets[b.at]), int(batch.timestamps_ms[b.at]),
            )
            for b in bad
        ]  # fmt: skip
        self._stats.letters = [*self._stats.letters, *newest][-LETTERS:]

    def _take(self, group: Group, pieces: list[Piece]) -> None:
        parts, edges, seen, quiet = list[Decoded](), list[Windows](), list[Windows](), list[I64]()
        for (_, topic), decoded, _, next_offset in pieces:
            group.passed(topic, next_offset)
            if group.edges is not None and topic != group.edges.mirror:
                spread = group.edges.spread(topic, decoded)
                edges.append(group.without_buried(spread.windows, decoded))
                decoded = spread.here
                for number, message in spread.away:
                    assert self.mirror is not None
                    self.mirror.send(number, message)
            if group.images is not None:
                current = self.releases.current if group.encodes else None
                windows, same = group.images.take(group.state, decoded, current)
                seen.append(windows)
                quiet.append(same)
            parts.append(decoded)
        touched = group.apply(parts, np.concatenate(quiet) if quiet else None)
        self._stats.accepted += touched.accepted
        self.offers.forget([gone.node for part in parts for gone in part.gone])
        if touched.deleted:
            self.offers.forget([category_hash(name) for name in touched.deleted])
        if group.phase != "serving" or not self._sink_up:
            group.forget_vectors(touched)
        else:
            if group.next is not None and len(touched.slots):
                assert self.releases.next is not None
                filled = group.next.live(touched, self.releases.next, self.releases)
                self._fill(group, group.next, *filled)
            slots, vectors, deletions, anew = group.live(touched, self.releases)
            self._stats.encoded += anew
            stepped = ~group.state.anew(touched)
            self._stats.stepped += int(touched.lengths[stepped].sum())
            self._post(group, slots, vectors, deletions, parts)
        if group.phase != "replaying" and group.edges is not None:
            self.offers.edges(group, touched, edges)
        elif group.phase != "replaying" and group.images is not None:
            self.offers.images(group, touched, seen)
        elif group.phase != "replaying":
            self.offers.sample(group, touched)
        if group.advance(self.releases.current is not None):
            log.info("serving", group=group.number, positions=group.positions)

    def _post(
        self,
        group: Group,
        slots: I64,
        vectors: Vectors,
        deletions: list[str],
        parts: list[Decoded],
    ) -> None:
        """Begins a write; while Redis works, the next records are polled, decoded and stepped."""
        self._settle()
        current = self.releases.current
        assert current is not None
        if not self._sink_up or not (len(slots) or deletions):
            return
        try:
            if deletions:
                for generation in self.releases.others:
                    group.post(self.sink, generation, _no_vectors(self.releases), deletions)()
            answer = group.post(self.sink, current.manifest.generation, vectors, deletions)
        except SinkDown as error:
            self._sink_failed(error)
            return
        group.paid(slots, deletions, current.number)
        self._posted = Posted(group, slots, deletions, parts, answer)

    def _fill(
        self, group: Group, generation: Generation, slots: I64, vectors: Vectors, anew: int
    ) -> None:
        """Writes vectors of the generation that is being filled; what Redis does not take stays owed."""
        self._settle()
        release = self.releases.next
        assert release is not None
        self._stats.encoded += anew
        if not self._sink_up or not len(slots):
            return
        try:
            group.post(self.sink, release.manifest.generation, vectors, [])()
        except SinkDown as error:
            self._sink_failed(error)
            return
        generation.paid(slots, release.number)

    def _settle(self) -> None:
        """Waits for the write under way. One that failed is owed again, before any snapshot says otherwise."""
        posted, self._posted = self._posted, None
        if posted is None:
            return
        try:
            result = posted.answer()
        except SinkDown as error:
            posted.group.refused(posted.slots, posted.deletions)
            self._sink_failed(error)
            return
        self._stats.written += result.written
        self._stats.refused += result.refused
        self._fresh(posted.parts)

    def _sink_failed(self, error: SinkDown) -> None:
        log.warning("sink_down", reason=str(error), next="the source is paused until it answers")
        self._sink_up = False

    def _fresh(self, parts: list[Decoded]) -> None:
        now_ms = self._wall() * 1000.0
        for part in parts:
            stamped = part.timestamp_ms[part.timestamp_ms > 0]
            ages = np.maximum(now_ms - stamped, 0.0) / 1000.0
            at = np.searchsorted(LATENCY_BOUNDS_S, ages)
            counts = np.bincount(at, minlength=len(LATENCY_BOUNDS_S) + 1)
            self._stats.freshness.add(counts.tolist(), float(ages.sum()))

    # -- Redis: fences, outages, what is owed ------------------------------------------------------

    def _sink_turn(self) -> None:
        """Raises fences that are still to be raised, and tries a Redis that was down."""
        starting = [g for g in self.groups.values() if g.phase == "starting"]
        if self._sink_up and not starting:
            return
        try:
            if not self._sink_up:
                self.sink.ping()
                if self.sink.server_changed():
                    log.warning("redis_replaced", next="every resident entity is written again")
                    for group in self.groups.values():
                        group.phase = "starting"
                        group.owe_everything()
                    starting = list(self.groups.values())
            for group in starting:
                group.raise_fence(self.sink)
                group.advance(self.releases.current is not None)
            self._sink_up = True
        except SinkDown:
            self._sink_up = False

    def _look_at_redis(self) -> None:
        """While nothing comes, no write tells: was Redis emptied, replaced, or set back? A fence that is
        gone or behind what was acknowledged says so."""
        if not self._sink_up or self._clock() < self._look_at:
            return
        self._look_at = self._clock() + LOOK_S
        try:
            for group in self.groups.values():
                if group.phase in ("waiting", "serving"):
                    group.check_fence(self.sink)
        except SinkDown as error:
            self._sink_failed(error)

    def _swap(self) -> None:
        began = self._clock()
        assert self.releases.current is not None
        for group in self.groups.values():
            group.owe_release(self.releases.current, self.releases.swap)
            group.advance(released=True)
        self._observe(self._stats.swap_pause, self._clock() - began)
        log.info("release_adopted", release=self.releases.current.number)

    def _follow(self) -> None:
        """Begins to fill the generation that is to be, or gives it up."""
        wanted = self.releases.next
        for group in self.groups.values():
            if group.next_release != (wanted.number if wanted else 0):
                group.fill(wanted)

    def _refill_turn(self, idle: bool) -> None:
        """Reads again some of what came before a field was named."""
        if self.refill is None or not (idle or self._encoding.allows()):
            return
        began = self._clock()
        if self.refill.left:
            try:
                self.refill.turn()
            except SourceDown as error:
                log.warning("source_down", of="fields that are read again", reason=str(error))
        elif not self.snapshots.under_way:
            self.refill.end()
            self.refill = None
        self._encoding.spend(self._clock() - began)

    def _spread_news(self, idle: bool) -> None:
        """Looks for those whose vectors follow from what was said of other nodes."""
        news = [g for g in self.groups.values() if len(g.news)]
        if not news or not (idle or self._encoding.allows()):
            return
        began = self._clock()
        for group in news:
            group.news.spread(group.state)
        self._encoding.spend(self._clock() - began)

    def _pay_owed(self, idle: bool) -> None:
        """Writes owed entities: a release reaches the quiet ones, an outage is made good."""
        if (
            not (idle or self._encoding.allows())
            or not self._sink_up
            or self.releases.current is None
        ):
            return
        current, following = self.releases.current, self.releases.next
        for group in self.groups.values():
            if group.phase != "serving":
                continue
            deletions = group.deletions()
            began = self._clock()
            found = group.served.owed(self._chunk, current)
            if found is not None or deletions:
                slots, vectors = found or (np.zeros(0, np.int64), _no_vectors(self.releases))
                self._post(group, slots, vectors, deletions, [])
                self._settle()
                self._stats.encoded += len(slots)
            elif group.next is not None and following is not None:
                found = group.next.owed(self._chunk, following)
                if found is None:
                    continue
                slots = found[0]
                self._fill(group, group.next, *found, len(slots))
            else:
                continue
            spent = self._clock() - began
            if len(slots) == self._chunk:  # a few are no measure of what many would take
                self._chunk = int(np.clip(self._chunk * 0.02 / max(spent, 1e-4), self._least, 1024))
            self._encoding.spend(spent)
            return

    # -- the end ----------------------------------------------------------------------------------

    def drain(self) -> None:
        """A last snapshot of every group, then all is closed."""
        self._settle()
        self.snapshots.last()
        self._report(force=True)
        self.close()

    def _flush(self) -> None:
        """What a snapshot's positions pass is durable elsewhere. Raises SourceDown."""
        self.dead_letters.flush()
        if self.mirror is not None:
            self.mirror.flush()

    def close(self) -> None:
        self.source.close()
        self.decoder.close()
        self.dead_letters.close()
        if self.mirror is not None:
            self.mirror.close()
        self.sink.close()

    # -- stats ------------------------------------------------------------------------------------

    def stats(self) -> ShardStats:
        """The newest report; safe from any thread."""
        found = self._reported
        found.progress = self._stats.progress + self.decoder.done
        return found

    def _observe(self, latency: Latency, seconds: float) -> None:
        counts = [0] * (len(LATENCY_BOUNDS_S) + 1)
        counts[int(np.searchsorted(LATENCY_BOUNDS_S, seconds))] = 1
        latency.add(counts, seconds)

    def _report(self, force: bool = False) -> None:
        now = self._clock()
        if not force and now - self._reported_at < 0.25:
            return
        self._reported_at = now
        groups = []
        for g in self.groups.values():
            waiting, records = self.skew.waiting(g.number)
            lag = self.source.lag(g.number) + records
            groups.append(g.stats(lag, now, not self._sink_up, waiting))
        used = frozenset(g.oldest_release for g in groups) | frozenset(g.release for g in groups)
        if not any(g.to_encode for g in groups):
            self.releases.forget(used)
        self._reported = deepcopy(self._stats)
        self._reported.sink_up = self._sink_up
        self._reported.named = self.offers.named(self.asked)
        self._reported.floor_us = self.skew.floor_us
        self._reported.memory_bytes = resident_bytes()
        self._reported.cpu_s = cpu_s()
        self._reported.groups = groups
        self._reported.to_refill = self.refill.left if self.refill is not None else 0


def _no_vectors(releases: Releases) -> Vectors:
    assert releases.current is not None
    none = np.zeros(0, np.int64)
    return Vectors(
        [], np.zeros((0, releases.current.manifest.dim), np.float32), none, none, none, none
    )

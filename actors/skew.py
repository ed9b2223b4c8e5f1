"""Partitions that are far ahead in event time wait for the others: `source.max_skew_s`.

A backlog is read from each partition at a pace of its own; without a bound, time in the rings and in the learner
would go to and fro. What was decoded and lies more than `max_skew` beyond the slowest partition is held, and its
partition paused meanwhile. The slowest one may always go on, so that somebody does. Nobody waits for a partition
that has nothing left to read, and not for long for one that says nothing: freshness before order.

All times are event times in µs, 0 where none is known. A time more than a day ahead of the record's production, or
of our clock, is a mistake: it counts for nothing, and its record goes along with those before it. Two records of one
message go together.

Source: Flink's watermark alignment (FLIP-182, FLIP-217); here by record, within a process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import structlog

from schemas.records import I64, OFFSET_BITS, Decoded

Part = tuple[int, int]
"""A partition of a topic: group, and the topic's index."""
PATIENCE_S = 10.0
"""For so long a partition, or another shard, that says nothing is waited for."""
AHEAD_MS = 86_400_000
FAR = np.iinfo(np.int64).max
log = structlog.get_logger()


class Piece(NamedTuple):
    """Decoded records of one partition, and where it stands once they are taken."""

    part: Part
    decoded: Decoded
    reached_us: I64  # [N] the newest time of the partition up to each record
    next_offset: int

    def split(self, limit_us: int) -> "tuple[Piece | None, Piece | None]":
        """What lies up to the limit, whole messages, and the rest."""
        position = self.decoded.rows.position
        n = int(np.searchsorted(self.reached_us, limit_us, "right"))
        if 0 < n < len(position):
            n = int(np.searchsorted(position, position[n - 1], "right"))
        if n == len(position):
            return self, None
        if n == 0:
            return None, self
        first = np.arange(len(position)) < n
        stands = int(position[n]) & ((1 << OFFSET_BITS) - 1)
        return (
            Piece(self.part, self.decoded.take(first), self.reached_us[:n], stands),
            self._replace(decoded=self.decoded.take(~first), reached_us=self.reached_us[n:]),
        )


@dataclass(slots=True)
class Lane:
    """One partition."""

    exempt: bool
    held: list[Piece] = field(default_factory=list)
    newest_us: int = 0  # of what was taken
    last_us: int = 0  # of what came
    known: bool = False  # something came
    came_at: float = 0.0  # by the shard's clock
    silent: bool = False  # given up until something comes

    def take(self, limit_us: int) -> list[Piece]:
        out = []
        while self.held:
            first, rest = self.held[0].split(FAR if self.exempt else limit_us)
            self.held[:1] = [] if rest is None else [rest]
            if first is not None:
                out.append(first)
                self.newest_us = int(first.reached_us.max(initial=self.newest_us))
            if rest is not None:
                break
        return out

    @property
    def head_us(self) -> int:
        """Time of what is to be taken next, where that is at hand, else of what was taken last."""
        if self.held and len(self.held[0].reached_us):
            return int(self.held[0].reached_us[0])
        return self.newest_us


class Skew:
    """Of one shard."""

    def __init__(
        self,
        max_skew_us: int,
        parts: dict[Part, bool],
        idle: Callable[[int, int], bool],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """max_skew_us: 0 lets all pass. parts: each with whether it is exempt, as an internal topic is."""
        self._max_us, self._idle, self._clock, self._wall = max_skew_us, idle, clock, wall
        self._lanes = {part: Lane(exempt) for part, exempt in parts.items()}
        self._since: float | None = None  # somebody waits
        self._others: tuple[int | None, float] = (None, 0.0)  # of other shards, and when it changed
        self._ignored: tuple[int | None, float] | None = None

    # -- records ----------------------------------------------------------------------------------

    def reached(self, part: Part, position: int) -> int:
        """Up to where the partition was decoded; `position`: up to where it was taken."""
        held = self._lanes[part].held
        return held[-1].next_offset if held else position

    def put(self, part: Part, decoded: Decoded, next_offset: int) -> None:
        lane = self._lanes[part]
        lane.known, lane.silent, lane.came_at = True, False, self._clock()
        times = np.maximum.accumulate(np.maximum(self._counted(decoded), lane.last_us))
        lane.last_us = int(times[-1]) if len(times) else lane.last_us
        lane.held.append(Piece(part, decoded, times, next_offset))

    def _counted(self, decoded: Decoded) -> I64:
        """The rows' times; 0 of those that count for nothing. [N]"""
        now_ms = int(self._wall() * 1000)
        made_ms = decoded.timestamp_ms
        made_ms = np.where(made_ms > 0, np.minimum(made_ms, now_ms), now_ms)
        counts = ~decoded.deleted & (decoded.rows.time_us <= (made_ms + AHEAD_MS) * 1000)
        return np.where(counts, decoded.rows.time_us, 0)

    def ready(self) -> list[Piece]:
        """What may be taken now."""
        limits = self._limits()
        out = [piece for part, lane in self._lanes.items() for piece in lane.take(limits[part])]
        self._give_up()
        return out

    def more(self) -> bool:
        """Whether something may be taken without anything new coming."""
        waiting = [(part, lane.head_us) for part, lane in self._lanes.items() if lane.held]
        limits = self._limits() if waiting else {}
        return any(head_us <= limits[part] for part, head_us in waiting)

    def rest(self) -> None:
        """Nothing can come for now: nobody is given up for that."""
        self._since = None

    def waits(self, part: Part) -> bool:
        return bool(self._lanes[part].held)

    def waiting(self, group: int) -> tuple[int, int]:
        """How many partitions of the group wait, with how many records."""
        held = [lane.held for (g, _), lane in self._lanes.items() if g == group and lane.held]
        return len(held), sum(len(piece.decoded.entities) for pieces in held for piece in pieces)

    # -- who waits for whom -----------------------------------------------------------------------

    def others(self, floor_us: int | None) -> None:
        """The slowest partition of all other shards; None: nobody is waited for. From any thread."""
        if floor_us != self._others[0]:
            self._others = floor_us, self._clock()

    @property
    def floor_us(self) -> int | None:
        """Time of the slowest partition here that others wait for; 0: it is not known yet; None: there is none."""
        return min(self._heads().values(), default=None)

    def _heads(self) -> dict[Part, int]:
        """How far those are whom others wait for."""
        if not self._max_us:
            return {}
        return {
            part: lane.head_us for part, lane in self._lanes.items() if self._counts(part, lane)
        }

    def _counts(self, part: Part, lane: Lane) -> bool:
        if lane.exempt or (lane.known and not lane.head_us):
            return False
        return bool(lane.held) or not (lane.silent or self._idle(*part))

    def _limits(self) -> dict[Part, int]:
        """How far each partition may go: as far as the slowest of the others, and max_skew further."""
        heads, others = self._heads(), self._others
        elsewhere = FAR if others is self._ignored or others[0] is None else others[0]
        slowest = min(heads, key=heads.__getitem__, default=None)
        first = min(heads.get(slowest, FAR) if slowest else FAR, elsewhere)
        second = min((at for part, at in heads.items() if part != slowest), default=FAR)
        limits = dict.fromkeys(self._lanes, min(first, FAR - self._max_us) + self._max_us)
        if slowest:
            limits[slowest] = min(second, elsewhere, FAR - self._max_us) + self._max_us
        return limits

    def _give_up(self) -> None:
        """Whoever was waited for, and said nothing."""
        if not any(lane.held for lane in self._lanes.values()):
            self._since = None
            return
        now = self._clock()
        self._since = now if self._since is None else self._since
        for part, lane in self._lanes.items():
            quiet = not lane.held and now - max(self._since, lane.came_at) >= PATIENCE_S
            if quiet and self._counts(part, lane):
                lane.silent = True
                log.warning("partition_silent", group=part[0], topic=part[1], next="others go on")
        others = self._others  # another thread may change it
        if now - max(self._since, others[1]) >= PATIENCE_S:
            self._ignored = others

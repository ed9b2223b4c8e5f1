"""The learner's process: windows come in by calls, a thread learns from them and snapshots.

A snapshot is whole in itself: the learner with its replay, and beside it what the publisher needs: the
averaged weights, windows of resident entities and of held-out ones."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import structlog
import torch

from actors import requests
from actors.candidate import ENCODER_FILE, HELD_OUT_FILE, RESIDENT_FILE, ReleaseConfig
from actors.challenger import Challenge
from actors.folders import Folder, newest, next_name, prune, write_file, write_folder
from actors.orders import Orders
from actors.usage import cpu_s, resident_bytes
from actors.watching import Watching
from learning.adaptation import adapt
from learning.config import EncoderConfig, GraphMemoryConfig, LearnerConfig
from learning.encoders.base import Encoder
from learning.field_learner import FieldLearner
from learning.graph_learner import GraphLearner
from learning.learner import Learner, StepStats, due_updates
from learning.learner_state import changed_encoder
from learning.memory_learner import MemoryLearner
from schemas.errors import SnapshotError
from schemas.records import I64, OFFSET_BITS, Told, Windows
from schemas.stats import LearnerStats
from schemas.stream import NEIGHBOUR, Shape

log = structlog.get_logger()
STATE_FILE, JSON_FILE, FORGOTTEN = "learner.safetensors", "learner.json", "forgotten.json"
RESIDENT, HELD_OUT = 4096, 4096  # windows beside a snapshot, for rotation and overlap
RESIDENT_BYTES = 64 << 20  # of pixels among them
IDLE_S = 0.02
SMOOTH = 0.05
Part = tuple[int, list[int], Windows]
"""Group, its positions when the windows were cut, the windows."""


def learner_of(config: LearnerConfig, encoder: EncoderConfig, shape: Shape, device: str) -> Learner:
    make: type[Learner] = GraphLearner if shape.unit == "node" else FieldLearner
    if isinstance(encoder, GraphMemoryConfig):
        make = MemoryLearner
    elif shape.unit == "image":
        from learning.image_learner import ImageLearner  # timm is slow to load

        make = ImageLearner
    return make(config, encoder, shape, device=device)


class Learn:
    """`orders`: what holds until the daemon gives others; assigned from any thread."""

    def __init__(
        self,
        config: LearnerConfig,
        encoder: EncoderConfig,
        shape: Shape,
        folder: Path,
        epoch: int,
        release: ReleaseConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        torch.set_num_threads(config.threads)
        self.orders = Orders()
        self._ahead = 0.0  # updates that orders have added to those due by the records
        self._config, self._folder, self._epoch = config, folder, epoch
        self._release, self._clock, self._dim = release, clock, encoder.dim
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._learner = learner_of(config, encoder, shape, device)
        # windows, entities to forget and what was said of nodes, as they came
        self._inbox: deque[Part | list[int] | Told] = deque()
        self._inbox_bytes = 0
        self._forgotten: list[int] = []  # those that one of the kept snapshots still has
        self._passed = 0  # so many of them the newest snapshot no longer has
        self._lock = threading.Lock()
        self._marks: dict[int, list[int]] = {}  # group -> positions that were learnt from
        self._stats = LearnerStats()

        def anew(seed: int) -> Learner:
            changed = msgspec.structs.replace(config, seed=seed)
            return learner_of(changed, encoder, shape, device)

        self._challenge = Challenge(config.challenger, folder.parent / "releases", anew)
        self._watching = Watching(config, shape, folder, self._stats, clock)
        newest(folder, self._restore)
        self._forget_again()
        self._stats.updates = self._learner.updates
        self._saved_at, self._saved_updates = clock(), self._learner.updates
        self._slice: tuple[float, float] = (
            clock(),
            0.0,
        )  # when cpu_share's account began, busy since

    def name_columns(self, names: Sequence[str]) -> None:
        """Of numbers and categories, for what is said of them; else they have numbers."""
        self._watching.name_columns(names)

    # -- called from other processes ----------------------------------------------------------------

    def offer(self, parts: list[Part]) -> bool:
        """Takes windows if there is room. False: full, nothing was taken."""
        size = sum(windows.nbytes for _, _, windows in parts)
        with self._lock:
            if self._inbox and self._inbox_bytes + size > self._config.queue_bytes:
                return False
            self._inbox.extend(parts)
            self._inbox_bytes += size
        return True

    def describe(self, told: Told) -> bool:
        """Takes what was said of nodes if there is room. False: full."""
        with self._lock:
            if self._inbox and self._inbox_bytes + told.nbytes > self._config.queue_bytes:
                return False
            self._inbox.append(told)
            self._inbox_bytes += told.nbytes
        return True

    def forget(self, entities: list[int]) -> bool:
        """Deleted entities (category_hash of their names) leave the replay; noted on disk before it returns.

        False: the disk did not take it; ask again."""
        with self._lock:
            try:
                self._note([*self._forgotten, *entities])
            except OSError as error:
                log.error("forget_not_noted", reason=str(error), next="asked again")
                return False
            self._inbox.append(entities)
        return True

    def _note(self, forgotten: list[int]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(self._folder / FORGOTTEN, json.dumps(forgotten).encode())
        self._forgotten = forgotten

    def stats(self) -> LearnerStats:
        return self._stats

    # -- the thread ---------------------------------------------------------------------------------

    def run(self, stopping: Callable[[], bool]) -> None:
        """Learns until `stopping`, then snapshots what is new."""
        while not stopping():
            if not self.turn():
                time.sleep(IDLE_S)
        if self._learner.updates > self._saved_updates:
            self._snapshot()

    def turn(self) -> bool:
        """Takes what came, makes an update if one is due, snapshots if a release is due."""
        began, orders, known = self._clock(), self.orders, self._learner.records
        self._receive(orders)
        since, busy = self._slice
        if began - since > 10.0:
            since, busy = began, 0.0
        learner = self._learner
        more = (learner.records - known) * self._config.updates_per_record
        self._ahead += (orders.pace - 1.0) * more
        made = learner.updates - int(self._ahead)
        due = due_updates(learner.records, made, busy, began - since + IDLE_S, self._config)
        step = self._watching.learn(learner) if due and not orders.paused else None
        if step is not None:
            self._count(step)
            self._challenge.learn()
        self._challenge_turn(began)
        self._snapshot_turn(orders)
        self._watching.turn(began, learner)
        self._slice = since, busy + self._clock() - began
        self._stats.progress += 1
        return step is not None

    def _challenge_turn(self, now: float) -> None:
        """Whoever has won takes the place of the one that serves."""
        challenger = self._challenge.learner
        self._stats.challenger_updates = challenger.updates if challenger is not None else 0
        outcome = self._challenge.outcome(now)
        if challenger is None or outcome is None:
            return
        self._stats.challengers[outcome] = self._stats.challengers.get(outcome, 0) + 1
        self._challenge.end()
        if outcome == "won":
            challenger.succeed(self._learner)
            self._learner = challenger
            self._snapshot()

    def _receive(self, orders: Orders) -> None:
        """Takes what came in; what a restored learner has learnt from already is skipped.

        While it is paused, what comes is not learnt from later either; of a graph all edges are taken, for
        later ones are learnt from beside them."""
        with self._lock:
            parts, self._inbox, self._inbox_bytes = list(self._inbox), deque(), 0
        gone = list[
            int
        ]()  # each time is a pass over the replay: together, until one of them is back
        for part in parts:
            if isinstance(part, list):
                gone += part
                continue
            if gone and np.isin(self._named(part), gone).any():
                self._forget(gone)
                gone.clear()
            if isinstance(part, Told):
                self._learner.describe(part)
                continue
            group, positions, windows = part
            mark = self._marks.get(group)
            if mark is not None and all(map(int.__le__, positions, mark)):
                self._skipped("stale", len(windows))
                continue
            if mark is not None and self._learner.shape.unit == "node":
                windows = self._beyond(windows, mark)
                positions = list(map(max, positions, mark))
            self._marks[group] = positions
            self._watching.received(windows)
            if orders.paused and self._learner.shape.unit != "node":
                self._skipped("paused", len(windows))
                continue
            self._learner.receive(windows)
            self._stats.received += len(windows)
        if gone:
            self._forget(gone)

    def _forget(self, entities: list[int]) -> None:
        gone = np.array(entities, np.int64)
        self._learner.forget(gone)
        self._watching.forget(gone)

    def _named(self, part: Part | Told) -> I64:
        """Of whom it is; of edges both ends."""
        if isinstance(part, Told):
            return part.node
        windows = part[2]
        if self._learner.shape.unit != "node":
            return windows.entity
        return np.concatenate([windows.entity, windows.rows.categories[:, NEIGHBOUR]])

    def _beyond(self, edges: Windows, mark: list[int]) -> Windows:
        """Edges that were not received before: unlike windows of an entity, they would count twice."""
        position = edges.rows.position
        offset = position & ((1 << OFFSET_BITS) - 1)
        new = offset >= np.array(mark, np.int64)[position >> OFFSET_BITS]
        if not new.all():
            self._skipped("stale", int(np.count_nonzero(~new)))
            edges = edges.of_one_row(new)
        return edges

    def _count(self, step: StepStats) -> None:
        s = self._stats
        s.updates = self._learner.updates
        if step.skipped:
            self._skipped(step.skipped, 1)
            return
        s.sequences += step.sequences
        s.gradient_norm = step.gradient_norm
        s.loss = _smooth(s.loss, step.loss)
        s.objective_losses = {
            name: _smooth(s.objective_losses.get(name, float("nan")), loss)
            for name, loss in step.objective_losses.items()
        }
        s.replay_windows = len(self._learner.replay)
        s.memory_bytes, s.cpu_s = resident_bytes(), cpu_s()

    def _skipped(self, why: str, count: int) -> None:
        self._stats.skipped[why] = self._stats.skipped.get(why, 0) + count

    # -- snapshots ----------------------------------------------------------------------------------

    def _snapshot_turn(self, orders: Orders) -> None:
        """A snapshot when a release is due: releases come from durable snapshots only."""
        updates = self._learner.updates - self._saved_updates
        every = self._release.every_s if self._saved_updates else self._release.first_s
        elapsed = self._clock() - self._saved_at
        due = updates >= self._release.every_updates and elapsed >= min(every, orders.release_s)
        if (
            (
                not orders.paused
                and requests.taken(self._folder, requests.ADAPTATION)
                and self._adapt()
            )
            or (due and not orders.paused)
            or (updates and requests.taken(self._folder, requests.SNAPSHOT))
        ):
            self._snapshot()
        elif self._stats.snapshot:
            self._stats.snapshot_age_s = elapsed

    def _adapt(self) -> bool:
        """The normaliser as the newest rows would have it, where entities then find themselves better."""
        if not isinstance(self._learner, FieldLearner) or self._learner.shape.unit == "node":
            return False
        found = adapt(self._learner)
        log.warning(
            "normalisation_adapted" if found.kept else "normalisation_left", **asdict(found)
        )
        return found.kept

    def _snapshot(self) -> None:
        self._receive(self.orders)
        with self._lock:  # what comes from now on is not in it
            forgotten = len(self._forgotten) - sum(
                len(part) for part in self._inbox if isinstance(part, list)
            )
        quality = self._learner.evaluate()
        s = self._stats
        s.heldout_entities, s.heldout_loss = quality.entities, quality.loss
        s.effective_rank, s.uniformity = quality.effective_rank, quality.uniformity
        name = next_name(self._folder, self._epoch)
        self._saved_at, self._saved_updates = self._clock(), self._learner.updates
        self._learner.mark_released()  # as far as is known here: the publisher may refuse it
        offers = self._challenge.learner if self._challenge.ready else None
        encoder = (offers or self._learner).released()
        flat, state = self._learner.state_dict()
        flat |= self._watching.state_dict()
        meta = {
            "updates": self._learner.updates,
            "encoder": msgspec.to_builtins(self._learner.encoder_config),
            "ahead": self._ahead,
            "marks": {str(group): mark for group, mark in self._marks.items()},
            "challenger": offers is not None,
        }
        try:
            write_folder(self._folder, name, self._files(flat, state, encoder), lambda: meta)
        except (OSError, SnapshotError) as error:
            s.snapshot_failures += 1
            log.error(
                "snapshot_failed", of="learner", reason=str(error), next="tried again in time"
            )
            return
        s.snapshot, s.snapshot_age_s = name, 0.0
        if offers is not None:
            self._challenge.offered(name)
        self._watching.snapshot_taken(self._learner, encoder)
        self._challenge.consider(self._learner, s.dormant)
        prune(self._folder, 2, name)
        with self._lock, suppress(OSError):  # forgotten by both of the snapshots that are kept
            if self._forgotten:
                self._note(self._forgotten[self._passed :])
                forgotten -= self._passed
        self._passed = forgotten

    def _files(
        self, flat: dict[str, Any], state: dict[str, Any], encoder: Encoder
    ) -> Iterator[tuple[str, bytes]]:
        tensors = {key: torch.as_tensor(value).contiguous() for key, value in flat.items()}
        yield STATE_FILE, safetensors.torch.save(tensors)
        yield JSON_FILE, json.dumps(state).encode()
        released = {k: v.contiguous() for k, v in encoder.state_dict().items()}
        yield ENCODER_FILE, safetensors.torch.save(released)
        yield from self._watching.files()
        resident = resident_windows(self._dim, self._learner.shape)
        for file, held, most in ((RESIDENT_FILE, False, resident), (HELD_OUT_FILE, True, HELD_OUT)):
            arrays = self._learner.windows(most, held=held).arrays()
            yield (
                file,
                safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()}),
            )

    def _forget_again(self) -> None:
        """What was deleted since the snapshot was taken, or is gone from it already."""
        with suppress(OSError, ValueError):
            self._forgotten = json.loads((self._folder / FORGOTTEN).read_bytes())
            self._forget(self._forgotten)

    def _restore(self, folder: Folder) -> bool:
        tensors = safetensors.torch.load(folder.read(STATE_FILE))
        saved = json.loads(folder.read(JSON_FILE))
        alike = saved["encoder"].get("window") == self._learner.encoder_config.window
        arrays = {k: v.numpy() for k, v in tensors.items()}
        self._watching.restore(arrays, folder, alike=alike or self._learner.shape.unit == "image")
        if changed_encoder(self._learner, saved):
            log.warning(
                "learner_begins_anew", next="from what it remembers, for another generation"
            )
            self._learner.inherit(dict(tensors), saved)
        else:
            self._learner.load_state_dict(dict(tensors), saved)
            self._ahead = folder.meta.get("ahead", 0.0)
        self._marks = {int(group): mark for group, mark in folder.meta["marks"].items()}
        self._stats.snapshot = folder.path.name
        return True


def resident_windows(dim: int, shape: Shape) -> int:
    """How many are beside a snapshot: fewer than 10 for each of the vector's dimensions, and a rotation overfits."""
    fit = RESIDENT_BYTES // shape.pixels if shape.side else RESIDENT
    return max(min(RESIDENT, fit), 10 * dim)


def _smooth(before: float, now: float) -> float:
    """An exponential mean, which one odd batch does not throw about."""
    return now if np.isnan(before) else before + SMOOTH * (now - before)

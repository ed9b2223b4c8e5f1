"""What the learner's process can say of the stream and of itself; it fills the learner's stats."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import structlog

from actors import requests
from actors.folders import Folder
from actors.served import current_release, read_manifest
from learning.ageing import Ageing
from learning.changes import changes
from learning.config import LearnerConfig
from learning.drift import INTERVAL, InputDrift, newest
from learning.encoders.base import Encoder
from learning.graph_learner import GraphLearner
from learning.learner import Learner, StepStats
from learning.learner_state import under
from learning.mmd import BATCH
from learning.plasticity import Step, dormant
from learning.report import Report, most, report
from learning.scalars import ScalarDrift
from learning.watch import EmbeddingWatch
from schemas.errors import ReleaseError
from schemas.records import I64, Windows
from schemas.stats import Changes, LearnerStats
from schemas.stream import Shape

log = structlog.get_logger()
DRIFT = "drift"  # of the snapshot's tensors
REFERENCE_FILE = "reference.safetensors"
MEASURED = 64  # updates between two whose length is measured
TOLD, TOLD_P = 0.6, 1e-6  # accuracy of the second opinion, and its chance, from where it is logged
SECOND_S = 60.0  # between two second opinions, and two looks at how a release ages
LOOK_S = 2.0  # between two looks at how the stream compares with its reference


class Watching:
    """Called by the learner's thread alone. folder: the learner's, where an operator's requests are."""

    def __init__(
        self,
        config: LearnerConfig,
        shape: Shape,
        folder: Path,
        stats: LearnerStats,
        clock: Callable[[], float],
    ) -> None:
        self._shape, self._folder, self._stats, self._on = shape, folder, stats, config.watch
        self._releases, self._current = folder.parent / "releases", (0, "")
        self._names: Sequence[str] = tuple(map(str, range(shape.numbers + shape.categories)))
        self._drift = InputDrift(self._columns(), shape.numbers + 1)
        self._watch = EmbeddingWatch(config.seed, nodes=shape.unit == "node")
        self._rng = np.random.default_rng(config.seed)
        self._touched = 0  # the adjacency's clock when nodes were looked at last
        self._second_due = self._aged_due = 0.0
        # by snapshot: of the newest, and of the one that is served
        self._ages: dict[str, Ageing] = {}
        self._due = clock()
        self._newest: Encoder | None = None  # of the last snapshot
        self._scalars = {name: ScalarDrift() for name in ("loss", "gradient_norm")}
        stats.scalar_alarms = dict.fromkeys(self._scalars, 0)

    def name_columns(self, names: Sequence[str]) -> None:
        """Of numbers and categories, for what is said of them; else they have numbers."""
        self._names = tuple(names)[: self._shape.numbers + self._shape.categories]
        self._drift.names = self._columns()

    def _columns(self) -> tuple[str, ...]:
        n = self._shape.numbers
        return (*self._names[:n], INTERVAL, *self._names[n:])

    def forget(self, entities: I64) -> None:
        """Deleted ones leave the references that are kept as they came."""
        before = self._watch.complete
        self._watch.forget(entities)
        if before and not self._watch.complete:
            self._renewed("hardly any of it was left, for entities were deleted")

    def _renewed(self, why: str) -> None:
        self._stats.changes = Changes()
        log.warning("reference_renewed", why=why, next="drift is measured against what comes now")

    def received(self, windows: Windows) -> None:
        """What came, before it is learnt from."""
        self._drift.add(newest(windows))
        if self._on and self._shape.unit != "node":
            self._watch.add(windows)

    def learn(self, learner: Learner) -> StepStats | None:
        """An update, looked at."""
        # not when a normaliser changes, which moves weights too
        measured = self._on and learner.updates % MEASURED == MEASURED // 2
        before = Step(learner.encoder) if measured else None
        step = learner.learn()
        if step is None or step.skipped:
            return step
        s = self._stats
        if before is not None:
            s.weight_norm, s.update_ratio = before.norm, before.ratio()
        # the norm by its log, for its tail is long
        values = step.loss, float(np.log(max(step.gradient_norm, 1e-30)))
        for (name, drift), value in zip(self._scalars.items(), values, strict=True):
            if drift.update(value):
                s.scalar_alarms[name] += 1
                log.warning("figure_rose", figure=name, value=round(getattr(step, name), 4))
        return step

    def turn(self, now: float, learner: Learner) -> None:
        """Says now and then how inputs and embeddings compare with their reference."""
        if now < self._due:
            return
        self._due = now + LOOK_S
        if requests.begun(self._folder, requests.RENEWAL):
            self._drift.renew()
            self._watch.renew()
            self._renewed("it was asked for")
        if self._on:
            self._look(now, learner)
        found = self._drift.report()
        for kind in ("psi", "ks", "missing", "new"):
            of_kind = {name: getattr(field, kind) for name, field in found.items()}
            setattr(self._stats, f"drift_{kind}", {n: v for n, v in of_kind.items() if v == v})

    def _look(self, now: float, learner: Learner) -> None:
        """At embeddings."""
        if self._stats.snapshot and self._watch.complete and not self._watch.served:
            self._newest = learner.released()
            self._watch.serve(self._newest)
        if isinstance(learner, GraphLearner):
            # it is given edges: nodes are cut here, as they are now
            replay = learner.replay
            self._watch.add(replay.touched(BATCH, self._touched, self._rng))
            self._touched = replay.adjacency.clock
        if self._watch.look():
            log.warning("embeddings_changed", ratio=round(self._watch.ratio, 2))
            self._second_due = now
        self._second_opinion(now)
        self._age(now, learner)
        self._stats.drift_embedding = self._watch.ratio
        self._stats.drift_alarms = self._watch.alarms

    def _second_opinion(self, now: float) -> None:
        """Once a minute, and at once after an alarm."""
        samples = self._watch.samples() if now >= self._second_due else None
        if samples is None:
            return
        self._second_due = now + SECOND_S
        before = self._stats.changes
        found = self._stats.changes = changes(*samples, self._names, self._rng)
        if (
            found.p < TOLD_P
            and found.accuracy > TOLD
            and found.fields.keys() != before.fields.keys()
        ):
            log.warning(
                "what_has_changed",
                accuracy=round(found.accuracy, 3),
                fields=list(found.fields),
                entities=found.entities,
            )

    def _age(self, now: float, learner: Learner) -> None:
        """Once a minute. Of the release that is served; where that is not known, of the newest snapshot."""
        if now < self._aged_due or not self._ages:
            return
        self._aged_due = now + SECOND_S
        name = self._served_snapshot() or next(reversed(self._ages))
        found = None
        if name in self._ages:
            found = self._ages[name].look(learner.windows(most(learner.ema), held=True))
        then, now_has = found or (float("nan"), float("nan"))
        self._stats.ageing, self._stats.retrieval = then - now_has, now_has

    def _served_snapshot(self) -> str:
        """The learner's snapshot that the release came from that is served."""
        current = current_release(self._releases)
        if current and current != self._current[0]:
            with suppress(ReleaseError):
                self._current = current, read_manifest(self._releases / str(current)).snapshot
        return self._current[1] if current == self._current[0] else ""

    def snapshot_taken(self, learner: Learner, encoder: Encoder) -> None:
        """encoder: what may be released from it, a challenger's perhaps; it is looked with from now on."""
        requests.done(self._folder, requests.RENEWAL)
        if not self._on:
            return
        s = self._stats
        held = learner.windows(most(encoder), held=True)
        found = report(encoder, self._newest, held, self._shape)
        for name in (f.name for f in fields(Report)):
            setattr(s, name, getattr(found, name))
        s.dormant = dormant(learner.encoder, held)
        self._newest = encoder
        self._watch.serve(encoder)
        gap_us = self._shape.session_gap_us
        kept = {self._served_snapshot(), *list(self._ages)[-1:]}  # it, and what may soon be
        self._ages = {name: age for name, age in self._ages.items() if name in kept}
        self._ages[s.snapshot] = Ageing(encoder, held, gap_us)

    # -- snapshots ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        return {f"{DRIFT}.{name}": value for name, value in self._drift.state_dict().items()}

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Beside the learner's own."""
        if (reference := self._watch.reference()) is not None:
            arrays = {k: np.ascontiguousarray(v) for k, v in reference.arrays().items()}
            yield REFERENCE_FILE, safetensors.numpy.save(arrays)

    def restore(
        self, tensors: Mapping[str, npt.NDArray[Any]], folder: Folder, *, alike: bool
    ) -> None:
        """alike: windows are as long as they were; else those that come would be no longer like the reference."""
        if requests.under_way(self._folder, requests.RENEWAL):
            return  # its reference was renewed since
        self._drift.load_state_dict(under(tensors, DRIFT))
        if REFERENCE_FILE in folder.files and not alike:
            log.warning("reference_renewed", why="encoder.window is another one")
        elif REFERENCE_FILE in folder.files:
            self._watch.restore(Windows.of_arrays(folder.tensors(REFERENCE_FILE)))

"""What the learner's process can say of the stream and of itself; it fills the learner's stats."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import structlog

from actors import requests
from actors.folders import Folder
from learning.config import LearnerConfig
from learning.drift import INTERVAL, InputDrift, newest
from learning.encoders.base import Encoder
from learning.learner import Learner, StepStats
from learning.plasticity import Step, dormant
from learning.report import COMPARED, Report, report
from learning.scalars import ScalarDrift
from learning.watch import EmbeddingWatch
from schemas.records import Windows
from schemas.stats import LearnerStats
from schemas.stream import Shape

log = structlog.get_logger()
DRIFT = "drift."  # of the snapshot's tensors
REFERENCE_FILE = "reference.safetensors"
MEASURED = 64  # updates between two whose length is measured
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
        self._shape, self._folder, self._stats = shape, folder, stats
        self._drift = InputDrift(self._columns(()), shape.numbers + 1)
        self._watch = EmbeddingWatch(config.seed)
        self._due = clock()
        self._newest: Encoder | None = None  # of the last snapshot
        self._scalars = {name: ScalarDrift() for name in ("loss", "gradient_norm")}
        stats.scalar_alarms = dict.fromkeys(self._scalars, 0)

    def name_columns(self, names: Sequence[str]) -> None:
        """Of numbers and categories, for what is said of them; else they have numbers."""
        self._drift.names = self._columns(names)

    def _columns(self, names: Sequence[str]) -> tuple[str, ...]:
        n = self._shape.numbers
        every = [*names, *map(str, range(len(names), n + self._shape.categories))]
        return (*every[:n], INTERVAL, *every[n : n + self._shape.categories])

    def received(self, windows: Windows) -> None:
        """What came, before it is learnt from."""
        self._drift.add(newest(windows))
        if self._shape.unit != "node":
            self._watch.add(windows)

    def learn(self, learner: Learner) -> StepStats | None:
        """An update, looked at."""
        measured = learner.updates % MEASURED == MEASURED // 2  # not when a normaliser changes
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
        if requests.taken(self._folder, requests.RENEWAL):
            self._drift.renew()
            self._watch.renew()
            log.warning(
                "reference_renewed", next="drift of inputs is measured against what comes now"
            )
        if self._stats.snapshot and self._watch.complete and not self._watch.served:
            self._newest = learner.released()
            self._watch.serve(self._newest)
        if self._watch.look():
            log.warning("embeddings_changed", ratio=round(self._watch.ratio, 2))
        self._stats.drift_embedding = self._watch.ratio
        self._stats.drift_alarms = self._watch.alarms
        found = self._drift.report()
        for kind in ("psi", "ks", "missing", "new"):
            of_kind = {name: getattr(field, kind) for name, field in found.items()}
            setattr(self._stats, f"drift_{kind}", {n: v for n, v in of_kind.items() if v == v})

    def snapshot_taken(self, learner: Learner) -> None:
        """What may be released from it is what is looked with from now on."""
        encoder, s = learner.released(), self._stats
        held = learner.windows(COMPARED[1], held=True)
        found = report(encoder, self._newest, held, self._shape)
        for name in (f.name for f in fields(Report)):
            setattr(s, name, getattr(found, name))
        s.dormant = dormant(learner.encoder, held)
        self._newest = encoder
        self._watch.serve(encoder)

    # -- snapshots ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        return {DRIFT + name: value for name, value in self._drift.state_dict().items()}

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Beside the learner's own."""
        if (reference := self._watch.reference()) is not None:
            arrays = {k: np.ascontiguousarray(v) for k, v in reference.arrays().items()}
            yield REFERENCE_FILE, safetensors.numpy.save(arrays)

    def restore(self, tensors: Mapping[str, npt.NDArray[Any]], folder: Folder) -> None:
        of_drift = {k: v for k, v in tensors.items() if k.startswith(DRIFT)}
        self._drift.load_state_dict({k[len(DRIFT) :]: v for k, v in of_drift.items()})
        if REFERENCE_FILE in folder.files:
            self._watch.restore(Windows.of_arrays(folder.tensors(REFERENCE_FILE)))

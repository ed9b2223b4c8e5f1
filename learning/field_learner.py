"""The learner of encoders that read fields: events and whole graphs; its subclass: nodes of a graph.

Beside what every learner has: running moments for the normaliser, admission of categories, clip bounds."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch

from learning import kinds, learner_state
from learning.config import EncoderConfig
from learning.encoders.base import FieldEncoder
from learning.halves import newest_rows
from learning.kinds.events import pad, subset
from learning.learner import EVALUATED, Learner
from learning.replay import Replay
from learning.running import Admission, Moments, clip_bounds
from learning.student import moved
from schemas.records import I64, Windows

NORMALISER_WINDOWS = 64  # of each receive, for the running moments
RENORMALISE_EVERY = 256  # updates; and after 1, 2, 4, ... before that


class FieldLearner(Learner):
    """Entities are sequences of records, or whole graphs."""

    encoder: FieldEncoder
    ema: FieldEncoder

    def _remember(self) -> None:
        self._count_fields()
        self.kind = kinds.build(self.shape, self.encoder.config, self.config)
        self.replay, self.held = self._stores(self.encoder_config)

    def _stores(self, encoder: EncoderConfig) -> tuple[Replay, Replay]:
        c, shape, window = self.config.replay, self.shape, encoder.window
        return Replay(c, shape, window), learner_state.held_store(c, shape, window)

    def _count_fields(self) -> None:
        self.moments = Moments(self.encoder.fields.scalar_width)
        self.admission = Admission(self.encoder.config, self.encoder.fields.shape)

    def begin_beside(self, other: Learner) -> None:
        assert isinstance(other, FieldLearner)
        super().begin_beside(other)
        self.moments, self.admission = deepcopy(other.moments), deepcopy(other.admission)
        if self.shape.categories:
            mask = self.admission.mask().to(self.device)
            for fields in (self.encoder.fields, self.ema.fields):
                fields.admitted.copy_(mask)

    def parts(self) -> dict[str, Any]:
        return super().parts() | {"moments": self.moments, "admission": self.admission}

    def receive(self, windows: Windows) -> int:
        """Of windows longer than this encoder's, as rings are while a longer one is served, the newest rows."""
        n, most = np.diff(windows.offsets), self.encoder_config.window
        if (n > most).any():
            which = np.flatnonzero(n)
            n = np.minimum(n[which], most)
            windows = newest_rows(windows, which, n, self.shape.session_gap_us)
        return super().receive(windows)

    def _observe(self, windows: Windows, new: I64) -> None:
        n = np.diff(windows.offsets)
        before_end = np.repeat(windows.offsets[1:], n) - np.arange(len(windows.rows))
        fresh = before_end <= np.repeat(new, n)
        rows, own = windows.rows, self.encoder.own_categories
        self.admission.add(rows.categories[fresh][:, own], rows.missing[fresh][:, own])
        sample = subset(windows, np.arange(min(NORMALISER_WINDOWS, len(windows))))
        view = moved(pad(sample, self.encoder.config.state), self.device)
        self.moments.add(self.encoder.fields, view)

    def _updated(self) -> None:
        power = self.updates & (self.updates - 1) == 0 and self.updates < RENORMALISE_EVERY
        if power or self.updates % RENORMALISE_EVERY == 0:
            self._renormalise()

    @torch.no_grad()
    def _renormalise(self) -> None:
        """New mean and scale for the features; the functions, and Adam's moments, follow."""
        mean, scale = (t.to(self.device) for t in self.moments.mean_and_scale())
        grew, at = self.encoder.fields.renormalise(mean, scale)
        self.ema.fields.renormalise(mean, scale)
        adam = self.optimizer.state.get(self.encoder.fields.project.weight)
        if adam:
            adam["exp_avg"][:, at] /= grew
            adam["exp_avg_sq"][:, at] /= grew.square()

    def prepare(self) -> None:
        """Before an update: buckets are admitted; before the first, bounds and normaliser are set."""
        if self.updates == 0:
            self._set_bounds()
        self._admit()

    def _set_bounds(self) -> None:
        if self.shape.numbers:
            some = self.windows(EVALUATED, held=False).rows.numbers
            for fields in (self.encoder.fields, self.ema.fields):
                fields.low, fields.high = (t.to(self.device) for t in clip_bounds(some))
        mean, scale = (t.to(self.device) for t in self.moments.mean_and_scale())
        for fields in (self.encoder.fields, self.ema.fields):
            fields.mean.copy_(mean)
            fields.scale.copy_(scale.clamp(min=0.05))

    @torch.no_grad()
    def _admit(self) -> None:
        """A bucket admitted (again) starts from a new row, without the moments of the old one."""
        rows, changed = self.admission.settle()
        if not changed or not self.encoder.fields.shape.categories:
            return
        mask = self.admission.mask().to(self.device)
        for fields in (self.encoder.fields, self.ema.fields):
            fields.admitted.copy_(mask)
        table = self.encoder.fields.embedding.weight
        values = self.rng.standard_normal((len(rows), table.shape[1]), np.float32) * 0.5
        at = torch.from_numpy(rows).to(self.device)
        for weight in (table, self.ema.fields.embedding.weight):
            weight[at] = torch.from_numpy(values).to(self.device)
        for name in ("exp_avg", "exp_avg_sq"):
            if name in self.optimizer.state.get(table, {}):
                self.optimizer.state[table][name][at] = 0.0

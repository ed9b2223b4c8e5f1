"""The normaliser set to what came last, where that helps: mean and scale of the inputs move, the weights stay.

As statistics of a normalisation layer are taken anew in another domain: AdaBN, Li et al., arXiv:1603.04779."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learning.encoders.fields import LEAST_SCALE, Fields
from learning.field_learner import FieldLearner
from learning.halves import halves
from learning.kinds import plain
from learning.kinds.events import subset
from learning.quality import retrieval
from learning.running import Moments
from learning.student import embed, moved
from schemas.records import Windows

RECENT = 1024  # windows: those that came last, of four times as many entities
JUDGED = 1000  # entities at most
LEAST = 32  # ... and at least
GAIN = 0.01  # in recall, from where on it is more than luck


@dataclass(frozen=True)
class Adapted:
    """Share of held-out entities whose later part finds the earlier one, before and with another normaliser."""

    kept: bool
    before: float = float("nan")
    after: float = float("nan")


@torch.no_grad()
def adapt(learner: FieldLearner) -> Adapted:
    """Tries it on copies of the averaged encoder; keeps it, in weights, average and running moments, where held-out
    entities find themselves better. Optimiser and weights are not touched: only what they are fed."""
    judged = learner.windows(JUDGED, held=True)
    earlier, later = halves(judged, learner.shape.session_gap_us)
    recent = newest(learner.windows(4 * RECENT, held=False), RECENT)
    if len(earlier) < LEAST or len(recent) < LEAST:
        return Adapted(kept=False)
    moments = moments_of(learner, recent)
    recalls = []
    for change in (False, True):
        encoder = learner.released()
        if change:
            _set(encoder.fields, moments)  # type: ignore[arg-type]
        recalls.append(retrieval(embed(encoder, later), embed(encoder, earlier)))
    before, after = recalls
    kept = after >= before + GAIN
    if kept:
        for fields in (learner.encoder.fields, learner.ema.fields):
            _set(fields, moments)
        learner.moments = moments
    return Adapted(kept, before, after)


def newest(windows: Windows, most: int) -> Windows:
    """Half of the windows, those whose last row is the newest, and at most so many."""
    there = np.flatnonzero(np.diff(windows.offsets))
    last_us = windows.rows.time_us[windows.offsets[there + 1] - 1]
    return subset(windows, there[np.argsort(-last_us, kind="stable")[: min(most, len(there) // 2)]])


def moments_of(learner: FieldLearner, windows: Windows) -> Moments:
    """Of all rows of the windows, as an encoder sees them; what none of them has keeps its moments."""
    view = moved(plain(windows, learner.encoder.config.state), learner.device)
    found = Moments(learner.encoder.fields.scalar_width)
    found.add(learner.encoder.fields, learner.encoder.own(view))
    none = found.n == 0
    found.mean[none] = learner.moments.mean[none]
    found.variance[none] = learner.moments.variance[none]
    return found


def _set(fields: Fields, moments: Moments) -> None:
    """Without folding the change into the weights: the function moves with its inputs."""
    mean, scale = (t.to(fields.mean.device) for t in moments.mean_and_scale())
    at: Tensor = fields.mean
    at.copy_(mean)
    fields.scale.copy_(scale.clamp(min=LEAST_SCALE))

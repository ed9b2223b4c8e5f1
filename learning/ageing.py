"""Is an encoder growing old? How well it tells entities apart now, against when it was released.

Self-retrieval: the later part of an entity's rows should find its earlier one among all others'. Of held-out
entities, so that nothing was learnt by heart; both figures are of the same ones."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from learning.encoders.base import Encoder
from learning.halves import halves, several
from learning.kinds.events import subset
from learning.quality import retrieval
from learning.student import embed
from schemas.records import I64, Windows

LEAST = 32  # entities that are compared, at least


class Parts(NamedTuple):
    """Of entities that could be cut: who they are, and the vectors of both parts."""

    entity: I64
    later: Tensor
    earlier: Tensor


class Ageing:
    """One encoder. windows: of the time when it was released, one of each entity."""

    def __init__(self, encoder: Encoder, windows: Windows, session_gap_us: int) -> None:
        self._encoder, self._gap_us = encoder, session_gap_us
        self._between = several(windows, session_gap_us)  # both figures by the same question
        self._released_us = int(windows.rows.time_us.max(initial=0))
        self._then = self._parts(windows)

    def look(self, windows: Windows) -> tuple[float, float] | None:
        """Recall at 1 then and now, of those entities alone that were there then and went on since; None while there
        are too few."""
        some = windows.offsets[1:] > windows.offsets[:-1]
        newest_us = windows.rows.time_us[np.maximum(windows.offsets[1:] - 1, 0)]
        fresh = np.flatnonzero(
            some & (newest_us > self._released_us) & np.isin(windows.entity, self._then.entity)
        )
        if len(fresh) < LEAST:
            return None
        now = self._parts(subset(windows, fresh))
        _, *at = np.intersect1d(self._then.entity, now.entity, return_indices=True)
        if len(at[0]) < LEAST:
            return None
        return _recall(self._then, at[0]), _recall(now, at[1])

    def _parts(self, windows: Windows) -> Parts:
        earlier, later = halves(windows, self._gap_us, self._between)
        return Parts(later.entity, embed(self._encoder, later), embed(self._encoder, earlier))


def _recall(parts: Parts, which: I64) -> float:
    at = torch.from_numpy(which)
    return retrieval(parts.later[at].float(), parts.earlier[at].float())

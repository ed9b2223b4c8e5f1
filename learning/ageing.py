"""Is an encoder growing old? How well it tells entities apart now, against when it was released.

Self-retrieval: the later part of an entity's rows should find its earlier one among all others'. Of held-out
entities, so that nothing was learnt by heart; both figures among equally many."""

import numpy as np
from torch import Tensor

from learning.encoders.base import Encoder
from learning.halves import halves, several
from learning.kinds.events import subset
from learning.quality import retrieval
from learning.student import embed
from schemas.records import Windows

LEAST = 32  # entities that are compared, at least


class Ageing:
    """One encoder. windows: of the time when it was released, one of each entity."""

    def __init__(self, encoder: Encoder, windows: Windows, session_gap_us: int) -> None:
        self._encoder, self._gap_us = encoder, session_gap_us
        self._between = several(windows, session_gap_us)  # both figures by the same question
        self._released_us = int(windows.rows.time_us.max(initial=0))
        self._then = self._vectors(windows)

    def look(self, windows: Windows) -> tuple[float, float] | None:
        """Recall at 1 then and now, now of those windows that went on since; None while there are too few."""
        some = windows.offsets[1:] > windows.offsets[:-1]
        newest_us = windows.rows.time_us[np.maximum(windows.offsets[1:] - 1, 0)]
        fresh = np.flatnonzero(some & (newest_us > self._released_us))
        if len(fresh) < LEAST or len(self._then[0]) < LEAST:
            return None
        now = self._vectors(subset(windows, fresh))
        n = min(len(now[0]), len(self._then[0]))
        if n < LEAST:
            return None
        return _recall(self._then, n), _recall(now, n)

    def _vectors(self, windows: Windows) -> tuple[Tensor, Tensor]:
        earlier, later = halves(windows, self._gap_us, self._between)
        return embed(self._encoder, later), embed(self._encoder, earlier)


def _recall(halves: tuple[Tensor, Tensor], n: int) -> float:
    return retrieval(halves[0][:n].float(), halves[1][:n].float())

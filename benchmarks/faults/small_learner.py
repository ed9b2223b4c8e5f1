"""A learner's port that looks at what shards offer it."""

from dataclasses import dataclass, field

import numpy as np

from actors.ports import LearnerPort
from benchmarks.faults.stand_ins import Violation
from schemas.records import Told, Windows


@dataclass
class SmallLearner(LearnerPort):
    """Takes windows while it has `room`, and looks at all that are offered."""

    room: int = 10
    taken: int = 0
    reached: dict[int, list[int]] = field(default_factory=dict)
    forgotten: set[int] = field(default_factory=set)  # durably, whatever becomes of it
    processes: int = 0

    def offer(self, group: int, positions: list[int], windows: Windows) -> bool:
        if any(map(int.__lt__, positions, self.reached.get(group, positions))):
            raise Violation(f"group {group}: windows of {positions} after {self.reached[group]}")
        self.reached[group] = positions
        if len(windows.rows) != windows.offsets[-1] or (np.diff(windows.offsets) <= 0).any():
            raise Violation(f"group {group}: windows that do not fit their rows")
        if self.room <= 0:
            return False
        self.room -= 1
        self.taken += len(windows)
        return True

    def poll(self) -> None: ...

    def describe(self, told: Told) -> bool:
        del told
        return True

    def forget(self, entities: list[int]) -> int:
        """Takes note of half of them at a time."""
        noted = (len(entities) + 1) // 2
        self.forgotten.update(entities[:noted])
        return noted

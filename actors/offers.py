"""What a shard gives its learner: windows, edges, what nodes have of their own, and whom to forget.

Nothing here waits for the learner."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from actors.budget import Budget
from actors.cut import Cut
from actors.group import Group
from actors.ports import LearnerPort
from actors.shard_config import ShardConfig
from actors.state import Touched
from schemas.records import I64, Windows
from schemas.stats import ShardStats
from schemas.stream import NEIGHBOUR

TOLD = 1024  # nodes that the learner is told of in one call
KNOWN = 1 << 16  # entities whose names are remembered, the last ones offered


class Offers:
    """Of one shard. `stats`: the shard's own, in which what was offered is counted."""

    def __init__(
        self,
        learner: LearnerPort | None,
        groups: Sequence[Group],
        config: ShardConfig,
        stats: ShardStats,
        clock: Callable[[], float],
    ) -> None:
        self.learner, self._groups, self._stats, self._clock = learner, groups, stats, clock
        self.budget, self._windows = Budget(config.sample_share, clock), config.sample_windows
        self._rng = np.random.default_rng([config.seed, *sorted(g.number for g in groups)])
        self.cut: Cut | None = (
            None  # of fields that only a release still names the learner knows nothing
        )
        self._telling: tuple[Group, I64] | None = None  # nodes that the learner is told of just now
        self._told_to = -1  # which of the learner's processes
        self._names: dict[int, str] = {}  # by hash, which is all that the learner has
        # deleted entities that the learner has not yet durably forgotten
        self.forgets = list(dict.fromkeys(e for group in groups for e in group.forgets))

    def turn(self) -> None:
        """Passes on whom to forget, and then what is said of nodes."""
        if self.forgets and self.learner is not None:
            del self.forgets[: self.learner.forget(self.forgets)]
        self._describe()

    def forget(self, entities: list[int]) -> None:
        """Deleted ones."""
        self.forgets += entities
        for entity in entities:
            self._names.pop(entity, None)

    def named(self, entities: Iterable[str]) -> dict[str, str]:
        """The names of those who were offered lately. entities: hashes, as `Changes` has them."""
        found = {e: self._names.get(int(np.uint64(int(e, 16)).view(np.int64))) for e in entities}
        return {entity: name for entity, name in found.items() if name is not None}

    def _know(self, group: Group, slots: I64, entities: I64) -> None:
        names = (group.state.names[slot] or "" for slot in slots.tolist())
        self._names.update(zip(entities.tolist(), names, strict=True))
        for entity in list(islice(self._names, max(len(self._names) - KNOWN, 0))):
            del self._names[entity]

    def sample(self, group: Group, touched: Touched) -> None:
        """Cuts training windows of entities that were just touched; never waits for the learner."""
        if self.learner is None or not len(touched.slots) or not self.budget.allows():
            return
        if group.lacking:  # windows of half of them would teach that a field is mostly missing
            return
        began = self._clock()
        n = min(self._windows, len(touched.slots))
        slots = np.sort(self._rng.choice(touched.slots, n, replace=False))
        windows = group.state.windows(slots)
        self._know(group, slots, windows.entity)
        self._offer(group, windows, began)

    def images(self, group: Group, touched: Touched, parts: list[Windows]) -> None:
        """Images that came, as time allows."""
        if self.learner is None or not any(map(len, parts)):
            return
        began = self._clock()
        if not self.budget.allows():
            self._stats.sample_skipped += sum(map(len, parts))
            return
        self._know_some(group, touched)
        # one offer: of two with the same positions the learner would skip the second
        self._offer(group, Windows.concat(parts), began)

    def edges(self, group: Group, touched: Touched, parts: list[Windows]) -> None:
        """A graph's learner gets the edges themselves, whole micro-batches in order, as time allows; those that
        remove edges always."""
        if self.learner is None or not any(map(len, parts)):
            return
        began = self._clock()
        windows = Windows.concat(parts)
        if not (self.budget.allows() or windows.rows.missing[:, NEIGHBOUR].any()):
            self._stats.sample_skipped += len(windows)
            return
        self._know_some(group, touched)
        self._offer(group, windows, began)

    def _know_some(self, group: Group, touched: Touched) -> None:
        slots = touched.slots[-self._windows :]
        self._know(group, slots, group.state.hashes(slots))

    def _describe(self) -> None:
        """What nodes have of their own goes to the learner, each from its own group: what is new, and to a new
        learner's process what there is."""
        if self.learner is None or (self.cut is not None and not self.cut.noded):
            for group in self._groups:
                group.news.unheard.clear()  # nobody asks
            return
        if self._told_to != self.learner.processes:
            self._told_to = self.learner.processes
            for group in self._groups:
                group.news.told_upto = 0
        if self._telling is None:
            found = (
                (g, g.news.untold(g.state, TOLD)) for g in self._groups if g.state.nodes is not None
            )
            self._telling = next((some for some in found if len(some[1])), None)
        if self._telling is not None:
            group, ids = self._telling
            assert group.state.nodes is not None
            told = group.state.nodes.told(ids)  # as it is now: nothing of who is deleted by now
            if self.cut is not None:
                told = replace(told, features=self.cut.features(told.features))
            if not len(told) or self.learner.describe(told):
                self._telling = None

    def _offer(self, group: Group, windows: Windows, began: float) -> None:
        assert self.learner is not None
        if self.cut is not None:
            windows = self.cut.windows(windows)
        if self.learner.offer(group.number, list(group.positions), windows):
            self._stats.sampled += len(windows)
        else:
            self._stats.sample_skipped += len(windows)
        self.budget.spend(self._clock() - began)

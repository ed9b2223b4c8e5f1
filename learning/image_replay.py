"""Images kept for learning: part of a batch is fresh, the rest is drawn from all there are.

Bounded in bytes, flat columns, no object per image. `learner.replay.policy` says which are drawn, and which go when it
is full:
- "stratified": drawn evenly over time; any goes.
- "fifo": any is drawn; the oldest goes.
- "minred": any is drawn; what is most like another goes, Purushwalkam et al. 2022, arXiv:2203.12710. How alike two
  are is known from the vectors of when each was learnt from last; what was not learnt from yet goes last.
- "balanced": drawn evenly over clusters of vectors (see clusters.py); any goes.
"""

import numpy as np

from learning.clusters import Clusters
from learning.config import ReplayConfig
from learning.held_out import mixed
from learning.replay import State
from schemas.records import F32, I64, ImageRows, Rows, Windows
from schemas.stream import LABEL, Shape

UNKNOWN = -2.0  # a likeness: below any cosine
OF_SLOT = 80  # bytes of a slot beside pixels and vector


class ImageReplay:
    """Slots of one image each. `dim`: D of the vectors kept beside them; 0: none are."""

    def __init__(self, config: ReplayConfig, shape: Shape, dim: int) -> None:
        self._config, self._shape, self._dim = config, shape, dim
        self.slots = max(2, config.max_bytes // (shape.pixels + 2 * dim + OF_SLOT))
        self._pixels = np.empty((self.slots, shape.pixels), np.uint8)  # taken as slots are used
        self._vector = np.empty((self.slots, dim), np.float16)
        self._key, self._entity, self._time_us, self._position, self._label, self._arrival = (
            np.zeros(self.slots, np.int64) for _ in range(6)
        )
        self._used, self._fresh, self._unlabelled = (
            np.zeros(self.slots, np.bool_) for _ in range(3)
        )
        self._like = np.full(self.slots, UNKNOWN, np.float32)  # cosine to the nearest other image
        self._nearest = np.full(self.slots, -1)  # ... and where that is
        self._cluster = np.full(self.slots, -1)
        self._arrived = 0
        self._clusters = Clusters(config.clusters, dim) if config.policy == "balanced" else None

    def __len__(self) -> int:
        return int(np.count_nonzero(self._used))

    @property
    def live(self) -> I64:
        """Slots that hold an image."""
        return np.flatnonzero(self._used)

    @property
    def fresh(self) -> int:
        """Images not learnt from yet."""
        return int(np.count_nonzero(self._fresh))

    @property
    def entities(self) -> I64:
        """Every entity once."""
        return np.unique(self.owners())

    def owners(self) -> I64:
        """The entity of every image kept."""
        return self._entity[self._used]

    def add(self, windows: Windows, rng: np.random.Generator) -> I64:
        """Keeps windows of one image each; returns of each 1 where it was not seen before, else 0."""
        if len(windows.rows) != len(windows):
            raise ValueError(
                f"{len(windows)} windows have {len(windows.rows)} images; needed is one each."
            )
        key = mixed(mixed(windows.entity) ^ windows.rows.position)
        new = np.zeros(len(key), np.bool_)
        new[np.unique(key, return_index=True)[1]] = True
        new &= ~np.isin(key, self._key[self._used])
        self._put(self._capped(windows, np.flatnonzero(new)), key, windows, rng)
        return new.astype(np.int64)

    def _capped(self, windows: Windows, new: I64) -> I64:
        """Of the new images those that are among their entity's newest; others of theirs make room."""
        live = self.live[np.isin(self.owners(), windows.entity[new])]
        rows = windows.rows
        entity = np.concatenate([self._entity[live], windows.entity[new]])
        time_us = np.concatenate([self._time_us[live], rows.time_us[new]])
        position = np.concatenate([self._position[live], rows.position[new]])
        order, rank = _ranked(entity, time_us, position)
        gone = np.zeros(len(order), np.bool_)
        gone[order[rank >= self._config.per_entity]] = True
        self._remove(live[gone[: len(live)]])
        kept: I64 = new[~gone[len(live) :]]
        return kept[-self.slots :]

    def _put(self, which: I64, key: I64, windows: Windows, rng: np.random.Generator) -> None:
        rows = windows.rows
        assert isinstance(rows, ImageRows)
        self._make_room(len(which) - (self.slots - len(self)), rng)
        slots = np.flatnonzero(~self._used)[: len(which)]
        self._pixels[slots] = rows.pixels[which]
        self._key[slots], self._entity[slots] = key[which], windows.entity[which]
        self._time_us[slots], self._position[slots] = rows.time_us[which], rows.position[which]
        self._label[slots], self._unlabelled[slots] = (
            rows.categories[which, LABEL], rows.missing[which, LABEL],
        )  # fmt: skip
        self._arrival[slots] = self._arrived + np.arange(len(which))
        self._arrived += len(which)
        self._used[slots] = self._fresh[slots] = True
        self._like[slots], self._nearest[slots], self._cluster[slots] = UNKNOWN, -1, -1
        self._vector[slots] = 0.0

    def _make_room(self, count: int, rng: np.random.Generator) -> None:
        if count <= 0:
            return
        live, policy = self.live, self._config.policy
        if policy in ("fifo", "minred"):
            gone = live[np.argsort(self._arrival[live], kind="stable")]
            if policy == "minred":
                gone = np.concatenate([self._redundant(live), gone])
                gone = gone[np.sort(np.unique(gone, return_index=True)[1])]
        else:
            gone = rng.permutation(live)
        self._remove(gone[:count])

    def _redundant(self, live: I64) -> I64:
        """Slots with a twin, the most alike first; of two that are each other's nearest only the older."""
        known = live[self._like[live] > UNKNOWN]
        twin = self._nearest[known]
        mutual = self._nearest[twin] == known
        known = known[~mutual | (self._arrival[known] < self._arrival[twin])]
        return np.asarray(known[np.argsort(-self._like[known], kind="stable")])

    def _remove(self, slots: I64) -> None:
        if not len(slots):
            return
        self._used[slots] = self._fresh[slots] = False
        lonely = np.isin(self._nearest, slots)
        lonely[slots] = True
        self._like[lonely], self._nearest[lonely] = UNKNOWN, -1

    def draw(self, n: int, rng: np.random.Generator) -> I64:
        """Up to n slots; the fresh ones among them are fresh no more."""
        live = self.live
        fresh = rng.permutation(np.flatnonzero(self._fresh))[: round(n * self._config.fresh)]
        chosen = np.concatenate([fresh, self._drawn(live, 2 * n, rng)])
        _, first = np.unique(chosen, return_index=True)
        chosen = chosen[np.sort(first)][:n]
        self._fresh[chosen] = False
        return chosen

    def _drawn(self, live: I64, n: int, rng: np.random.Generator) -> I64:
        if not len(live):
            return live
        if self._config.policy == "stratified":
            time_us = self._time_us[live]
            oldest = int(time_us.min())
            width = (int(time_us.max()) - oldest) // self._config.strata + 1
            return live[_evenly((time_us - oldest) // width, n, rng)]
        if self._clusters is not None:
            fine = self._cluster[live]
            coarse = np.append(self._clusters.coarse(), -1)[fine]
            return live[_evenly(fine, n, rng, within=coarse)]
        return live[rng.integers(0, len(live), n)]

    def take(self, slots: I64) -> Windows:
        """The windows of these slots."""
        n = len(slots)
        rows = Rows.empty(self._shape, n)
        assert isinstance(rows, ImageRows)
        rows.time_us[:], rows.position[:] = self._time_us[slots], self._position[slots]
        rows.categories[:, LABEL] = self._label[slots]
        rows.missing[:, LABEL] = self._unlabelled[slots]
        rows.pixels = self._pixels[slots]
        totals = np.zeros((n, self._shape.totals))
        return Windows(rows, np.arange(n + 1), totals, rows.time_us.copy(), self._entity[slots])

    def learnt(self, slots: I64, z_ND: F32) -> None:
        """What the encoder makes of these images now: unit vectors."""
        self._vector[slots] = z_ND
        if self._clusters is not None:
            self._cluster[slots] = self._clusters.move(z_ND)
        if self._config.policy != "minred":
            return
        known = self.live
        known = known[self._vector[known].any(1)]
        like = z_ND @ self._vector[known].astype(np.float32).T
        like[np.arange(len(slots)), np.searchsorted(known, slots)] = UNKNOWN  # no twin of itself
        nearest = like.argmax(1)
        self._like[slots] = like[np.arange(len(slots)), nearest]
        self._nearest[slots] = np.where(self._like[slots] > UNKNOWN, known[nearest], -1)

    def newest(self, n: int) -> Windows:
        """Up to n images: the newest of each entity, those of the smallest hashes first; then the second newest."""
        live = self.live
        order, rank = _ranked(self._entity[live], self._time_us[live], self._position[live])
        first = np.lexsort((self._entity[live[order]], rank))[:n]
        return self.take(live[order[first]])

    def forget(self, entities: I64) -> None:
        """Drops every image of these."""
        self._remove(self.live[np.isin(self.owners(), entities)])

    def state_dict(self) -> State:
        """Everything, without the room not used."""
        live = self.live
        of_clusters = self._clusters.state_dict() if self._clusters else {}
        return {
            **{name: getattr(self, f"_{name}")[live] for name in _COLUMNS},
            **{f"clusters.{name}": a for name, a in of_clusters.items()},
            "slots": live,
            "arrived": np.array([self._arrived]),
        }

    def load_state_dict(self, state: State) -> None:
        slots = state["slots"]
        if len(slots) and int(slots.max()) >= self.slots:
            raise ValueError("The snapshot's replay is larger than learner.replay.max_bytes.")
        self._used[:] = self._fresh[:] = False
        self._used[slots] = True
        for name in _COLUMNS:
            getattr(self, f"_{name}")[slots] = state[name]
        self._arrived = int(state["arrived"][0])
        if self._clusters is not None:
            prefix = "clusters."
            of = {k.removeprefix(prefix): a for k, a in state.items() if k.startswith(prefix)}
            if not self._clusters.load_state_dict(of):
                self._cluster[:] = -1


_COLUMNS = (
    "pixels", "vector", "key", "entity", "time_us", "position", "label", "arrival", "fresh",
    "unlabelled", "like", "nearest", "cluster",
)  # fmt: skip


def _ranked(entity: I64, time_us: I64, position: I64) -> tuple[I64, I64]:
    """An order by entity, and of each in this order how many of its entity are newer."""
    order = np.lexsort((position, time_us, entity))[::-1]
    first = np.flatnonzero(np.diff(entity[order], prepend=entity[order][:1] - 1))
    return order, np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))


def _evenly(group: I64, n: int, rng: np.random.Generator, within: I64 | None = None) -> I64:
    """n places of `group`, as many of each there is; `within`: of each place a larger group, drawn before."""
    within = np.zeros_like(group) if within is None else within
    code = (within + 1) * (int(group.max()) + 2) + group + 1
    order = np.argsort(code, kind="stable")
    start = np.flatnonzero(np.diff(code[order], prepend=-1))  # of each group
    size = np.diff(start, append=len(code))
    first = np.flatnonzero(np.diff(within[order[start]], prepend=-2))  # of each larger one
    many = np.diff(first, append=len(start))
    which = rng.permutation(np.arange(n) % len(first))
    chosen = first[which] + (rng.random(n) * many[which]).astype(np.int64)
    return np.asarray(order[start[chosen] + (rng.random(n) * size[chosen]).astype(np.int64)])

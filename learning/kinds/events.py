"""Events: windows of an entity's records -> padded views, whole or in random slices.

All of it is vectorised NumPy. Shapes: N rows, B windows, M pieces, T rows of the longest piece.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from learning.config_base import EncoderBase
from learning.contract import Batch, Needs, View
from schemas.records import F64, I64, Windows, contributions
from schemas.stream import Shape

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

ENCODE_INPUTS = (
    "time_us", "numbers", "categories", "missing", "length",
    "previous_us", "totals", "first_us", "state",
)  # fmt: skip
STEP_INPUTS = tuple(name for name in ENCODE_INPUTS if name != "length")


@dataclass(slots=True)
class Pieces:
    """M runs of rows, each of one window."""

    owner: I64  # [M] the window it is of
    start: I64  # [M] its first row in windows.rows
    length: I64  # [M] at least 1
    totals: F64  # [M, K] before its first row, but for that row's session, which counts


def whole(windows: Windows) -> Pieces:
    """Every window as it is."""
    n = np.diff(windows.offsets)
    return Pieces(np.arange(len(windows)), windows.offsets[:-1], n, windows.totals)


def subset(windows: Windows, which: I64) -> Windows:
    """Some of the windows, in this order."""
    start, n = windows.offsets[which], np.diff(windows.offsets)[which]
    ends = np.cumsum(n)
    at = np.arange(int(n.sum())) + np.repeat(start - ends + n, n)
    return Windows(
        windows.rows.take(at),
        np.concatenate([[0], ends]),
        windows.totals[which],
        windows.first_us[which],
        windows.entity[which],
        None if windows.own is None else windows.own.take(which),
        None if windows.far is None else windows.far.take(at),
    )


def totals_before(windows: Windows, owner: I64, start: I64, session_gap_us: int) -> F64:
    """Running totals before row `start` of window `owner`, its own session included. [M, K]"""
    rows, first = windows.rows, windows.offsets[:-1]
    sums = np.zeros((len(rows) + 1, windows.totals.shape[1]))
    np.cumsum(contributions(rows.numbers), axis=0, out=sums[1:])
    opens = np.zeros(len(rows), np.int64)
    opens[1:] = np.diff(rows.time_us) > session_gap_us
    opens[first] = 0
    sums[:-1, 1] = np.cumsum(opens)  # through the row, not before it
    return np.asarray(windows.totals[owner] + sums[start] - sums[first[owner]])


def slices(windows: Windows, needs: Needs, gap_us: int, rng: np.random.Generator) -> Pieces:
    """Random slices, `needs.slices` of each window, side by side: each `shortest` to `longest` of
    the rows there are, at least 2 (or the only one)."""
    owner = np.repeat(np.arange(len(windows)), needs.slices)
    n = np.diff(windows.offsets)[owner]
    share = rng.uniform(needs.shortest, needs.longest, len(owner))
    length = np.clip(np.rint(share * n).astype(np.int64), np.minimum(2, n), n)
    start = windows.offsets[owner] + rng.integers(0, n - length + 1)
    return Pieces(owner, start, length, totals_before(windows, owner, start, gap_us))


def columns(windows: Windows, pieces: Pieces, state: int) -> Arrays:
    """Padded columns of the pieces: after its last row a piece repeats it.

    time_us [M,T], numbers [M,T,Fn], categories and missing [M,T,Fc], length, previous_us and
    first_us [M], totals [M,K], state [M,H] zeros, valid_BT, position_BT; of nodes with features
    NODE_VIEW [M,N] and FAR_VIEW [M,T,N]."""
    step = np.arange(int(pieces.length.max(initial=1)))
    last = pieces.length[:, None] - 1
    at = pieces.start[:, None] + np.minimum(step, last)
    rows = windows.rows
    time_us = rows.time_us[at]
    own = {} if windows.own is None else windows.own.take(pieces.owner).named("node")
    far = {} if windows.far is None else windows.far.take(at).named("far")
    return {
        **own,
        **far,
        "time_us": time_us,
        "numbers": np.take(rows.numbers, at, axis=0),
        "categories": np.take(rows.categories, at, axis=0),
        "missing": np.take(rows.missing, at, axis=0),
        "length": pieces.length,
        "previous_us": time_us[:, 0].copy(),
        "totals": pieces.totals,
        "first_us": windows.first_us[pieces.owner],
        "state": np.zeros((len(pieces.owner), state), np.float32),
        "valid_BT": step <= last,
        "position_BT": np.broadcast_to(step, at.shape),
    }


def tensors(arrays: Arrays) -> View:
    return {name: torch.from_numpy(np.require(a, None, ["C", "W"])) for name, a in arrays.items()}


def pad(windows: Windows, state: int) -> View:
    """Whole windows as a view; `state`: width of the recurrent state, which starts at zero."""
    return tensors(columns(windows, whole(windows), state))


def augmented(view: Arrays, config: EncoderBase, rng: np.random.Generator) -> Arrays:
    """Drops whole fields and what went before, so that neither a constant field nor the entity's
    age solves the task; and single categories, which trains the unknown one."""
    numbers, missing, totals = view["numbers"], view["missing"], view["totals"].copy()
    m, _, width = numbers.shape
    no_number = rng.random((m, width)) < config.field_dropout
    no_category = rng.random((m, missing.shape[2])) < config.field_dropout
    totals[:, 2:] *= ~np.tile(no_number, 3)  # three blocks
    begins = rng.random(m) < config.history_dropout
    totals[begins] = np.eye(1, totals.shape[1], 1)[0]  # nothing, but one session
    first_us = np.where(begins, view["previous_us"], view["first_us"])
    return {
        **view,
        "numbers": np.where(no_number[:, None, :], np.float32(np.nan), numbers),
        "missing": missing | no_category[:, None, :],
        "unknown": rng.random(missing.shape, np.float32) < config.category_dropout,
        "totals": totals,
        "first_us": first_us,
    }


def masked(view: Arrays, share: float, rng: np.random.Generator) -> Arrays:
    """Hides rows: their fields are missing, their times stay. `masked_BT` says which."""
    hidden = (rng.random(view["time_us"].shape) < share) & view["valid_BT"]
    return {
        **view,
        "numbers": np.where(hidden[:, :, None], np.float32(np.nan), view["numbers"]),
        "missing": view["missing"] | hidden[:, :, None],
        "masked_BT": hidden,
    }


class Events:
    """The kind of streams whose entities are sequences of records."""

    def __init__(self, shape: Shape, config: EncoderBase) -> None:
        self.shape = shape
        self.config = config

    def views(
        self, windows: Windows, needs: Needs, rng: np.random.Generator, *, augment: bool
    ) -> Batch:
        """Cuts what is needed; without `augment` nothing is dropped."""
        raw: dict[str, Arrays] = {}
        index = index_of(windows)
        pairs: Arrays = {}
        if needs.slices:
            pieces = slices(windows, needs, self.shape.session_gap_us, rng)
            raw["slices"] = self._finish(columns(windows, pieces, self.config.state), rng, augment)
            index["owner_M"] = pieces.owner
            pairs["positives"] = positives(len(windows), needs.slices)
        if needs.window or needs.masked or (needs.following and not needs.slices):
            plain = columns(windows, whole(windows), self.config.state)
            raw["window"] = self._finish(plain, rng, augment)
        if needs.masked:
            raw["masked"] = masked(raw["window"], needs.masked, rng)
        views = {name: tensors(arrays) for name, arrays in raw.items()}
        if needs.following:
            views["next"] = views["slices" if needs.slices else "window"]
        now_us = int(windows.rows.time_us.max(initial=0))
        return Batch(views, tensors(index), tensors(pairs), now_us)

    def _finish(self, view: Arrays, rng: np.random.Generator, augment: bool) -> Arrays:
        return augmented(view, self.config, rng) if augment else view


def index_of(windows: Windows) -> Arrays:
    """A batch's `index` of its entities."""
    last = windows.offsets[1:] - 1
    time_us = windows.rows.time_us[last]
    position = windows.rows.position[last]
    with np.errstate(over="ignore"):
        record = windows.entity * np.int64(-7046029254386353131) + position
    return {"entity_B": windows.entity, "record_B": record, "time_B": time_us}


def positives(entities: int, count: int) -> npt.NDArray[np.int64]:
    """Rows of "slices" that belong together: neighbours within an entity, 2 × (S // 2 · B)."""
    first = np.arange(entities)[:, None] * count + np.arange(0, count - 1, 2)
    return np.stack([first.ravel(), first.ravel() + 1])

"""Whole graphs: windows of a graph's edges -> augmented looks at it, padded.

A look changes the graph in one way, drawn at random: edges go, nodes go, a random walk's part of it stays, or
values of the edges' fields are hidden. Source: GraphCL, You et al. 2020, arXiv:2010.13902.

Vectorised NumPy. Shapes: B graphs, M looks, T edges of the longest, N = 2·T ends."""

import numpy as np

from learning.config import AUGMENTATIONS, GraphClConfig
from learning.config_base import EncoderBase
from learning.contract import Batch, Needs
from learning.held_out import held_out
from learning.kinds.events import Arrays, Pieces, columns, index_of, positives, tensors
from schemas.records import I64, Bool, Windows
from schemas.stream import ENDS

STEPS = 4  # of a walk, for each node that it is to find


class WholeGraphs:
    """The kind of streams whose entities are graphs. Views: "slices", the looks at a graph side by side, of which
    there are `needs.slices`; pairs: `positives`, two looks at one graph."""

    def __init__(self, encoder: EncoderBase, looks: GraphClConfig) -> None:
        self._encoder, self._looks = encoder, looks

    def views(
        self, windows: Windows, needs: Needs, rng: np.random.Generator, *, augment: bool
    ) -> Batch:
        """Looks differ also without `augment`, for they are the task; with it single categories are unknown."""
        owner = np.repeat(np.arange(len(windows)), max(needs.slices, 1))
        length = np.diff(windows.offsets)[owner]
        pieces = Pieces(owner, windows.offsets[owner], length, windows.totals[owner])
        view = looked(columns(windows, pieces, 0), self._looks, rng)
        if augment:
            dropped = rng.random(view["missing"].shape, np.float32)
            view["unknown"] = dropped < self._encoder.category_dropout
        pairs = {"positives": positives(len(windows), max(needs.slices, 1))}
        now_us = int(windows.rows.time_us.max(initial=0))
        index = {**index_of(windows), "owner_M": owner}
        return Batch({"slices": tensors(view)}, tensors(index), tensors(pairs), now_us)


def looked(view: Arrays, looks: GraphClConfig, rng: np.random.Generator) -> Arrays:
    """Each of M padded graphs changed in one way; where nothing would be left, it stays whole."""
    ends, valid = view["categories"][:, :, ENDS], view["valid_BT"]
    fields = view["numbers"].shape[2] + view["missing"].shape[2] - ENDS.stop
    ways = [w for w in AUGMENTATIONS if getattr(looks, w) and (fields or w != "field_mask")]
    if not ways:
        return view
    drawn = np.array(ways)[rng.integers(0, len(ways), len(valid))]
    at = {way: np.flatnonzero(drawn == way) for way in AUGMENTATIONS}
    keep = valid.copy()
    m = at["edge_drop"]
    keep[m] &= rng.random((len(m), valid.shape[1])) >= looks.edge_drop
    m = at["node_drop"]
    salt = rng.integers(-(1 << 63), (1 << 63) - 1, (len(m), 1, 1))
    gone = held_out((ends[m] ^ salt).ravel(), looks.node_drop)  # of a node everywhere, or nowhere
    keep[m] &= ~gone.reshape(-1, valid.shape[1], 2).any(2)
    m = at["subgraph"]
    keep[m] &= walked(ends[m], valid[m], 1.0 - looks.subgraph, rng)
    keep |= valid & ~keep.any(1, keepdims=True)
    return packed(_hidden(view, at["field_mask"], looks.field_mask, rng), keep)


def _hidden(view: Arrays, m: I64, share: float, rng: np.random.Generator) -> Arrays:
    """The view, some values of the edges' fields of the looks m hidden; the edges themselves stay."""
    numbers, missing = view["numbers"].copy(), view["missing"].copy()
    numbers[m] = np.where(rng.random(numbers[m].shape) < share, np.float32(np.nan), numbers[m])
    hidden = rng.random(missing[m].shape) < share
    hidden[:, :, ENDS] = False
    missing[m] |= hidden
    return {**view, "numbers": numbers, "missing": missing}


def walked(ends: I64, valid: Bool, share: float, rng: np.random.Generator) -> Bool:
    """[M, T] edges between the nodes that a random walk over ends [M, T, 2] finds, until it has found `share` of
    them all or is tired."""
    near = np.concatenate([ends[..., 0], ends[..., 1]], 1)
    far = np.concatenate([ends[..., 1], ends[..., 0]], 1)
    there = np.concatenate([valid, valid], 1)
    line = np.arange(len(near))
    known = np.sort(np.where(there, near, near[:, :1]), axis=1)
    nodes = 1 + np.count_nonzero(np.diff(known, axis=1), axis=1)
    wanted = np.maximum(np.rint(share * nodes), 2.0)
    found, seen = np.zeros(len(near), np.int64), np.zeros_like(there)
    here = near[line, np.argmax(rng.random(there.shape) * there, 1)]
    for _ in range(STEPS * int(wanted.max(initial=0))):
        going = found < wanted
        if not going.any():
            break
        at = (near == here[:, None]) & there
        found += going & ~(seen & at).any(1)
        seen |= at & going[:, None]
        here = far[line, np.argmax(rng.random(there.shape) * at, 1)]
    both: Bool = seen[:, : valid.shape[1]] & seen[:, valid.shape[1] :] & valid
    return both


def packed(view: Arrays, keep: Bool) -> Arrays:
    """The view's kept edges to the front, padded behind by the last of them. keep: at least one of each."""
    length = keep.sum(1)
    step = np.arange(int(length.max(initial=1)))
    order = np.argsort(~keep, axis=1, kind="stable")
    at = np.take_along_axis(order, np.minimum(step, length[:, None] - 1), axis=1)
    line = np.arange(len(keep))[:, None]
    rows = {name: view[name][line, at] for name in ("time_us", "numbers", "categories", "missing")}
    valid = step < length[:, None]
    position = np.broadcast_to(step, valid.shape)
    return {**view, **rows, "length": length, "valid_BT": valid, "position_BT": position}

"""Nodes as they are now -> padded views: whole, in slices, with features hidden, with bandwidths.

Features come as one table of distinct nodes, which `node_at` [U] and `far_at` [U, T] point into; its last row is of
a node of which nothing is known. Shapes: U nodes, T edges of the busiest, S slices of a node."""

import numpy as np

from learning.contract import Needs, View
from learning.kinds.events import Arrays, tensors
from learning.node_table import Described
from learning.nodes import Nodes
from schemas.records import F32, I64, Bool
from schemas.stream import NEIGHBOUR, ROW_VIEW


def add(
    nodes: Nodes,
    needs: Needs,
    hidden: float,
    rng: np.random.Generator,
    into: tuple[dict[str, View], Arrays, Arrays],
) -> None:
    """Views: "window", "masked", "bandwidth" [U, T] of all nodes; "slices" [S·U', T] of those that are learnt
    from. index: `walk_WL` and `other_P`, rows of those; `near_UT`, the row that an edge leads to, or -1; of
    "masked" `masked_U` and `table_U`, rows of the table. pairs: `positives`, rows of "slices".

    hidden: share of the fields of nodes that each slice does without."""
    views, index, pairs = into
    plain = whole(nodes)
    index |= {"walk_WL": nodes.walks, "other_P": nodes.others}
    if needs.window:
        views["window"] = tensors(plain)
    if needs.masked or needs.bandwidth:
        index["near_UT"] = near(nodes, plain["valid_BT"])
    if needs.masked and nodes.described is not None:
        views["masked"], index["masked_U"] = masked(plain, index["near_UT"], needs.masked, rng)
        index["table_U"] = nodes.described.own
    if needs.bandwidth:
        weights = bandwidths(plain["valid_BT"], needs.bandwidth, rng)
        views["bandwidth"] = tensors({**plain, "bandwidth_BT": weights})
    if needs.slices:
        learnt = np.unique(nodes.walks)
        views["slices"] = tensors(slices(plain, learnt, needs, hidden, rng))
        first = np.arange(len(learnt))[:, None] * needs.slices + np.arange(0, needs.slices - 1, 2)
        pairs["positives"] = np.stack([first.ravel(), first.ravel() + 1])
        index["owner_M"] = np.repeat(np.arange(len(learnt)), needs.slices)
        index["entity_B"] = nodes.ids[learnt]


def whole(nodes: Nodes) -> Arrays:
    """All nodes as they are."""
    longest = max(int(nodes.length.max(initial=0)), 1)
    out: Arrays = {name: getattr(nodes.rows, name)[:, :longest] for name in ROW_VIEW}
    steps = np.broadcast_to(np.arange(longest), (len(nodes.ids), longest))
    out |= {"length": nodes.length, "valid_BT": steps < nodes.length[:, None], "position_BT": steps}
    return out if nodes.described is None else out | pointing(nodes.described, longest)


def pointing(described: Described, longest: int) -> Arrays:
    """A view's table, and the places in it of nodes [M] and of their edges' far nodes [M, T]."""
    far = described.far.reshape(described.own.size, -1)
    places = {"node_at": described.own.ravel(), "far_at": far[:, :longest]}
    return described.features.named("table") | places


def near(nodes: Nodes, valid: Bool) -> I64:
    """The place among the nodes that each edge leads to; -1 where that is none of them, or the node itself."""
    far = nodes.rows.categories[:, : valid.shape[1], NEIGHBOUR]
    at = np.minimum(np.searchsorted(nodes.ids, far), len(nodes.ids) - 1)
    there = (nodes.ids[at] == far) & valid & (at != np.arange(len(far))[:, None])
    return np.where(there, at, -1)


def masked(
    plain: Arrays, near_UT: I64, share: float, rng: np.random.Generator
) -> tuple[View, Bool]:
    """Nothing is known of some of the nodes, wherever they are seen; which ones. [U]"""
    hidden = rng.random(len(near_UT)) < share
    blank = len(plain["table_numbers"]) - 1
    seen = hidden[near_UT] & (near_UT >= 0)
    own = np.where(hidden, blank, plain["node_at"])
    return tensors(
        {**plain, "node_at": own, "far_at": np.where(seen, blank, plain["far_at"])}
    ), hidden


def bandwidths(valid: Bool, temperature: float, rng: np.random.Generator) -> F32:
    """Boltzmann-Gibbs over each node's edges, of energies drawn from a normal distribution: [U, T], 1 in the
    mean over a node's edges."""
    energy = rng.standard_normal(valid.shape, np.float32) / np.float32(temperature)
    energy = np.where(valid, energy, -np.inf)
    top = np.where(valid.any(1), energy.max(1), 0.0)
    weight = np.exp(energy - top[:, None])
    total = np.maximum(weight.sum(1, keepdims=True), 1e-30)
    return np.asarray(weight / total * valid.sum(1, keepdims=True), np.float32)


def slices(
    plain: Arrays, which: I64, needs: Needs, hidden: float, rng: np.random.Generator
) -> Arrays:
    """S views of each node side by side, each with `shortest` to `longest` of its edges (one at least) and
    without `hidden` of the nodes' fields: the s-th views of all nodes do without the same."""
    at = np.repeat(which, needs.slices)
    valid = plain["valid_BT"][at]
    share = rng.uniform(needs.shortest, needs.longest, (len(at), 1))
    luck = np.where(valid, rng.random(valid.shape), 2.0)
    keep = valid & ((luck < share) | (luck == luck.min(1, keepdims=True)))
    order = np.argsort(~keep, axis=1, kind="stable")
    length = keep.sum(1)
    longest = max(int(length.max(initial=0)), 1)
    order = order[:, :longest]
    line = np.arange(len(at))[:, None]
    moved = [*ROW_VIEW, *(["far_at"] if "far_at" in plain else [])]
    out: Arrays = {name: plain[name][at][line, order] for name in moved}
    steps = np.broadcast_to(np.arange(longest), (len(at), longest))
    out |= {"length": length, "valid_BT": steps < length[:, None], "position_BT": steps}
    if "node_at" in plain:
        turn = np.tile(np.arange(needs.slices), len(which))
        known = len(plain["table_numbers"]) - 1
        out |= {name: a for name, a in plain.items() if name.startswith("table_")}
        shape = needs.slices, out["table_numbers"].shape[1] + out["table_categories"].shape[1]
        out["table_hidden"] = rng.random(shape) < hidden
        for name, places in (("node_at", plain["node_at"][at]), ("far_at", out["far_at"])):
            step = turn.reshape(-1, *(1,) * (places.ndim - 1)) * known
            out[name] = np.where(places == known, known * needs.slices, places + step)
    return out

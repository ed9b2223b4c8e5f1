"""Graphs: edges with their ends' neighbours as they were before them, nodes as they are now -> padded views.

Shapes: B edges, C nodes of an example (source, target, negatives), U nodes, K edges of a node, T of the busiest."""

import numpy as np

from learning.config_base import EncoderBase
from learning.contract import Batch, Needs, View
from learning.edges import SOURCE, TARGET, Examples
from learning.kinds import node_views
from learning.kinds.events import Arrays, tensors
from learning.nodes import Drawn
from schemas.stream import ROW_VIEW


class Graph:
    """The kind of streams whose records are edges between nodes.

    Of edges, the views "nodes" [B·C, K] of all nodes of the examples, edge by edge; "source" and "target"
    [B·(C-1), K] of each pair of a source with its target and negatives. pairs: `source_id`, `target_id`, `now_us`
    of those, `collides` [B, C-1]. index: `nodes_BC`, `time_B`.
    Of nodes, the views "window", "slices", "masked" and "bandwidth": see node_views."""

    def __init__(self, config: EncoderBase) -> None:
        self._config = config

    def views(
        self, drawn: Drawn, needs: Needs, rng: np.random.Generator, *, augment: bool
    ) -> Batch:
        """With `augment` single categories and whole fields are shown as unknown, which trains what stands for
        those."""
        views: dict[str, View] = {}
        index: Arrays = {}
        pairs: Arrays = {}
        now_us = 0
        if drawn.edges is not None:
            self._of_edges(drawn.edges, rng, augment, (views, index, pairs))
            now_us = int(drawn.edges.time_us.max(initial=0))
        if drawn.nodes is not None:
            share = max(needs.hidden, self._config.field_dropout if augment else 0.0)
            node_views.add(drawn.nodes, needs, share, rng, (views, index, pairs))
            now_us = max(now_us, int(drawn.nodes.rows.time_us.max(initial=0)))
        return Batch(views, tensors(index), tensors(pairs), now_us)

    def _of_edges(
        self,
        examples: Examples,
        rng: np.random.Generator,
        augment: bool,
        into: tuple[dict[str, View], Arrays, Arrays],
    ) -> None:
        views, index, pairs = into
        b, c = examples.nodes.shape
        longest = max(int(examples.length.max(initial=0)), 1)
        each = np.arange(b * c).reshape(b, c)
        others = each[:, TARGET:].ravel()
        sources = np.repeat(each[:, SOURCE], c - 1)
        nodes = _flat(examples, longest)
        if augment:
            dropped = rng.random(nodes["missing"].shape, np.float32)
            nodes["unknown"] = dropped < self._config.category_dropout
        pairs |= {
            "source_id": examples.nodes.ravel()[sources],
            "target_id": examples.nodes.ravel()[others],
            "now_us": np.repeat(examples.time_us, c - 1),
            "collides": examples.collides[:, TARGET:],
        }
        edges = {name: nodes[name] for name in (*ROW_VIEW, "length")}  # what a pair is scored by
        views |= {
            "nodes": tensors(nodes),
            "source": tensors({name: a[sources] for name, a in edges.items()}),
            "target": tensors({name: a[others] for name, a in edges.items()}),
        }
        index |= {"nodes_BC": examples.nodes, "time_B": examples.time_us}


def _flat(examples: Examples, longest: int) -> Arrays:
    rows, n = examples.rows, examples.nodes.size
    out = {
        name: getattr(rows, name)[:, :, :longest].reshape(
            n, longest, *getattr(rows, name).shape[3:]
        )
        for name in ROW_VIEW
    }
    if examples.described is not None:
        out |= node_views.pointing(examples.described, longest)
    steps = np.broadcast_to(np.arange(longest), (n, longest))
    length = examples.length.ravel()
    return {**out, "length": length, "valid_BT": steps < length[:, None], "position_BT": steps}

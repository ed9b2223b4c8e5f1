"""Memories of nodes: what one step recomputes is what `encode` makes of the window, whatever the batches."""

import json
from collections import defaultdict

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learning import encoders, export
from learning.config import GraphMemoryConfig, NextInteractionConfig
from learning.contract import Needs
from learning.edges import Store
from learning.kinds.events import pad
from learning.memory_learner import MemoryGraph, MemoryLearner, MemoryReplay, both_ends
from learning.nodes import Drawn
from schemas.records import Rows, Windows
from tests.learning.edge_streams import CONFIG, SHAPE, circles, edges
from tests.learning.test_graph_learner import _fields

ENCODER = GraphMemoryConfig(
    dim=8, hidden=6, window=6, category_dim=3, bucket_bits=4, pair_hidden=8, neighbour_ids=True
)
CONTRAST = NextInteractionConfig(historical=2, matched=2, random=2, pairs=0.0)
HALF = ENCODER.window // 2


def learner(**changes) -> MemoryLearner:
    fields = {**_fields(CONFIG), "objective": (CONTRAST,), **changes}
    return MemoryLearner(type(CONFIG)(**fields), ENCODER, SHAPE)


def replay() -> MemoryReplay:
    torch.manual_seed(0)
    encoder = encoders.build(ENCODER, SHAPE).eval()
    return MemoryReplay(CONFIG.replay, SHAPE, ENCODER.window, CONTRAST, encoder)


def joined(parts: list[Rows]) -> Windows:
    """Each node's rows as a window, in the order they are in."""
    n, offsets = len(parts), np.cumsum([0, *map(len, parts)])
    rows, none = Rows.concat(parts), np.zeros(n, np.int64)
    return Windows(rows, offsets, np.zeros((n, SHAPE.totals)), rows.time_us[offsets[:-1]], none)


def naive(history: list[Rows], time_us: int) -> Rows:
    """One edge after the other: those before the time, of which the newest w by the anchor rule."""
    before = [row for row in history if row.time_us[0] < time_us]
    n = len(before)
    w = n if n < HALF else HALF + n % HALF
    return Rows.concat(before[n - w :]) if w else Rows.empty(SHAPE)


@torch.no_grad()
def check(made: MemoryReplay, drawn, histories) -> int:
    """Every vector that is learnt from, against `encode` of the naive window; how many had one."""
    kind = MemoryGraph(ENCODER)
    rng = np.random.default_rng(0)
    view = kind.views(Drawn(edges=drawn), Needs(), rng, augment=False).views["nodes"]
    z = made.encoder(view).z_BD.reshape(*drawn.nodes.shape, -1)
    places, windows = [], []
    for i, time_us in enumerate(drawn.time_us.tolist()):
        for j, node in enumerate(drawn.nodes[i].tolist()):
            if not drawn.collides[i, j]:
                rows = naive(histories[node], time_us)
                assert drawn.length[i, j] == (len(rows) > 0)
                if len(rows):
                    places.append((i, j))
                    windows.append(rows)
    if not windows:
        return 0
    at = tuple(np.array(places).T)
    assert torch.allclose(z[at], made.encoder(pad(joined(windows), 0)).z_BD, atol=1e-5)
    return len(places)


@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.integers(1, 90))
@settings(deadline=None, max_examples=12)
def test_a_step_from_the_memory_is_encode_of_the_window(seed, nodes, size):
    """Batches of any size, some nodes many times in one: no state is stale, and none knows of its future."""
    rng = np.random.default_rng(seed)
    made, held, histories, compared = replay(), Store(1 << 18, SHAPE, 6, 8), defaultdict(list), 0
    for first in range(0, 120, size):
        ends = rng.integers(0, nodes, (2, size)) + 1000
        times = (first + np.arange(size)) // rng.integers(1, 4)  # some edges at one time
        part = edges(ends[0].tolist(), ends[1].tolist(), times.tolist(), first=first)
        part.rows.numbers[:, 1] = rng.standard_normal(size)
        part.rows.time_us += 240_000_000 * first
        for node, row in zip(*_each(part), strict=True):
            histories[node].append(row)
        made.add(part)
        drawn = made.draw(size, 0.0, held, rng)
        compared += 0 if drawn is None else check(made, drawn, histories)
    assert compared > 0


def _each(part: Windows) -> tuple[list[int], list[Rows]]:
    ends, rows = both_ends(part.entity, part.rows)
    return ends.tolist(), [rows.take(np.array([i])) for i in range(len(rows))]


def test_a_label_of_the_future_changes_nothing_before_it():
    """Whatever comes later, in the batch or after it: what an edge is learnt from stays."""
    rng = np.random.default_rng(1)
    early, late = circles(rng, 60), circles(rng, 60, 60)
    planted = edges([1000] * 60, [1001] * 60, list(range(60, 120)), first=60)
    found = []
    for rest in (late, planted):
        made, held = replay(), Store(1 << 18, SHAPE, 6, 8)
        made.add(early)
        made.add(rest)
        found.append(made.draw(120, 0.0, held, np.random.default_rng(0)))
    # the negatives drawn may differ: sources and targets are the stream's
    for name in ("memory", "before_us", "length"):
        a, b = (getattr(drawn, name)[:60, :2] for drawn in found)
        assert np.array_equal(a, b)


def test_an_edge_of_which_a_node_knows_later_ones_is_no_example():
    made, held = replay(), Store(1 << 18, SHAPE, 6, 8)
    made.add(edges([1, 2, 1, 4], [2, 3, 3, 5], [10, 20, 15, 30]))  # the third comes late
    drawn = made.draw(8, 0.0, held, np.random.default_rng(0))
    assert drawn.nodes[:, 0].tolist() == [1, 4], "not those with node 3"


@pytest.mark.parametrize("how", ["late", "removed", "forgotten"])
def test_what_is_left_of_the_ring_makes_a_memory_anew(how):
    """Then a memory is that of a stream in which the edges came so from the start."""
    made, held, rng = replay(), Store(1 << 18, SHAPE, 6, 8), np.random.default_rng(0)
    a = edges([1, 1, 1, 1], [2, 3, 4, 5], [10, 20, 30, 40])
    made.add(a)
    made.draw(8, 0.0, held, rng)
    if how == "late":
        made.add(edges([1], [6], [15], first=9))
        left, times = [2, 6, 3, 4, 5], [10, 15, 20, 30, 40]
    elif how == "removed":
        made.add(edges([1], [3], [50], removed=[True], first=9))
        left, times = [2, 4, 5], [10, 30, 40]
    else:
        made.forget(np.array([3]))
        left, times = [2, 4, 5], [10, 30, 40]
    made.draw(8, 0.0, held, rng)
    made.add(edges([1, 1], [7, 8], [60, 70], first=20))
    made.draw(1, 0.0, held, rng)  # what was forgotten is made anew with the node's next edge
    drawn = made.draw(1, 0.0, held, rng)
    rows = edges([1] * len(left), left, times).rows
    rows = Rows.concat([rows, edges([1], [7], [60]).rows])
    n = made.memory.count[made.adjacency.index[1]] - 1
    w = min(len(rows), HALF + n % HALF)
    kind = MemoryGraph(ENCODER)
    view = kind.views(Drawn(edges=drawn), Needs(), rng, augment=False).views["nodes"]
    with torch.no_grad():
        wanted = made.encoder(pad(joined([rows.take(slice(len(rows) - w, None))]), 0)).z_BD[0]
        assert torch.allclose(made.encoder(view).z_BD[0], wanted, atol=1e-5)


def test_a_restored_learner_continues_bit_by_bit():
    a, b, rng = learner(), learner(), np.random.default_rng(0)
    for i in range(12):
        a.receive(circles(rng, 32, 32 * i))
        a.learn()
    flat, meta = a.state_dict()
    b.load_state_dict(flat, json.loads(json.dumps(meta)))
    for i in range(12, 20):
        more = circles(rng, 32, 32 * i)
        for each in (a, b):
            each.receive(more)
        assert a.learn() == b.learn()
    assert a.evaluate() == b.evaluate()


@pytest.mark.parametrize("changes", [{"window": 10}, {"hidden": 5}])
def test_with_another_encoder_memories_are_made_anew(changes):
    a, rng = learner(), np.random.default_rng(0)
    for i in range(12):
        a.receive(circles(rng, 32, 32 * i))
        a.learn()
    flat, meta = a.state_dict()
    b = MemoryLearner(a.config, msgspec.structs.replace(ENCODER, **changes), SHAPE)
    b.inherit(flat, json.loads(json.dumps(meta)))
    assert isinstance(b.replay, MemoryReplay)
    known = b.replay.adjacency.known()
    assert len(known) == len(a.replay.adjacency) and b.replay.memory.stale[known].all()
    for i in range(12, 16):
        b.receive(circles(rng, 32, 32 * i))
        step = b.learn()
        assert step is None or not step.skipped
    assert b.updates > 0 and not b.replay.memory.stale[known].all()


@pytest.mark.parametrize("pairs", [0.0, 1.0])
def test_it_learns_who_writes_to_whom(pairs):
    objective = NextInteractionConfig(historical=2, matched=2, random=2, pairs=pairs)
    made = learner(held_out_share=0.0, objective=(objective,), batch_entities=8)
    rng, losses = np.random.default_rng(0), []
    for i in range(300):
        made.receive(circles(rng, 8, 8 * i))
        step = made.learn()
        losses += [step.loss] if step else []
    assert made.replay.waiting < 32 and made.updates > 250
    assert np.mean(losses[-30:]) < 0.9 * np.mean(losses[:30])


def test_both_graphs_of_a_release_compute_what_pytorch_does():
    made, rng = learner(), np.random.default_rng(0)
    for i in range(12):
        made.receive(circles(rng, 32, 32 * i))
        made.learn()
    encoder = made.released()
    graphs = export.export(encoder, {"stream": "test"})
    assert list(graphs) == ["encode", "score"]
    windows = made.windows(40, held=False)
    assert export.parity(encoder, graphs, windows) <= 1e-5
    assert export.parity(encoders.build(ENCODER, SHAPE).eval(), graphs, windows) > 1e-3


def test_held_out_nodes_are_scored_and_teach_nothing():
    made, rng = learner(), np.random.default_rng(0)
    made.share = 0.3
    for i in range(30):
        made.receive(circles(rng, 32, 32 * i))
        made.share = 0.3
        made.learn()
    assert len(made.held) > 0
    assert np.isfinite(made.evaluate().loss)

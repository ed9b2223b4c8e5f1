"""After its edges were removed a node's vector is that of a stream in which they never were: through decoder, state
and a release in ONNX Runtime, while no ring overflows and the encoder has no memory."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from actors.decode import DecodeConfig, make_decoder
from actors.edges import Edges
from actors.embed import encode_anew
from actors.encode import Release
from actors.state import State
from learning.config import TemporalAttentionConfig
from learning.node_table import NodeTable
from schemas.records import F32
from tests.fakes import Record
from tests.graphs import STREAM, edge
from tests.services import make_release

ENCODER = TemporalAttentionConfig(
    dim=8, hidden=8, window=32, category_dim=4, bucket_bits=6, neighbour_ids=True
)
MOST = 30  # records, tombstones too: a ring of 32 does not overflow

nodes = st.sampled_from("abcde")
records = st.lists(
    st.builds(
        lambda src, dst, at, op, kind, amount: edge(
            src, dst, 1000 + 777 * at, 1, op=op, amount=amount, **({"type": kind} if kind else {})
        ),
        nodes,
        nodes,
        st.integers(0, 20),
        st.sampled_from(["add", "add", "remove"]),
        st.sampled_from(["", "t0", "t1"]),
        st.floats(-9, 9),
    ),
    min_size=1,
    max_size=MOST,
)
"""In the order in which they come; their times are any."""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("releases")
    make_release(folder, 1, ENCODER, STREAM)
    return Release.load(folder / "1")


def vectors(
    stream: Sequence[tuple[int, Record]], sizes: Sequence[int], release: Release
) -> dict[str, F32]:
    """node -> vector, of nodes with live edges. stream: offsets and records, taken in micro-batches."""
    decoder, edges = make_decoder(STREAM, DecodeConfig()), Edges(STREAM.shape, 0, 1, 1, 1, {})
    state, left, turn = State(STREAM.shape, ENCODER.window, 0, 64), list(stream), 0
    state.nodes = NodeTable(STREAM.shape, 64)
    while left:
        n = sizes[turn % len(sizes)]
        part, left, turn = left[:n], left[n:], turn + 1
        at = np.array([offset for offset, _ in part])
        decoded, bad = decoder.decode(
            0, at, at, [r.key for _, r in part], [r.value for _, r in part]
        )
        assert not bad
        state.apply(edges.spread(0, decoded).here)
    assert state.placed.max(initial=0) <= ENCODER.window
    slots = np.array(sorted(state.index.values()), np.int64)
    found = encode_anew(state, slots, release)
    live = state.held(slots) > 0
    return {
        state.names[s] or "": v for s, v, there in zip(slots, found, live, strict=True) if there
    }


def never_removed(stream: Sequence[tuple[int, Record]]) -> list[tuple[int, Record]]:
    """The edges without those that some removal lies behind, by (time, offset), and without the removals."""
    told = [(offset, json.loads(r.value or b""), r) for offset, r in stream]

    def key(value: dict[str, str]) -> tuple[frozenset[str], str | None]:
        return frozenset((value["src"], value["dst"])), value.get("type")

    ends = {}
    for offset, value, _ in told:
        if value["op"] == "remove":
            ends[key(value)] = max(ends.get(key(value), (0, 0)), (value["at"], offset))
    return [
        (offset, r)
        for offset, value, r in told
        if value["op"] == "add" and (value["at"], offset) > ends.get(key(value), (0, -1))
    ]


LATE = [
    edge("a", "b", 3000, 1, op="remove", amount=0.0),
    edge("a", "c", 5000, 1, op="add", amount=1.0),
    edge("b", "a", 2000, 1, op="add", amount=2.0),  # comes behind its removal
    edge("a", "b", 4000, 1, op="add", amount=3.0),  # anew
]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records, st.lists(st.integers(1, 9), min_size=1, max_size=6))
@example(LATE, [1])
def test_a_removed_edge_leaves_no_trace_in_the_vector(
    release: Release, come: list[Record], sizes: list[int]
) -> None:
    stream = list(enumerate(come))
    found = vectors(stream, sizes, release)
    wanted = vectors(never_removed(stream), [MOST], release)
    assert found.keys() == wanted.keys()
    for name, vector in wanted.items():
        np.testing.assert_allclose(found[name], vector, atol=1e-5, err_msg=name)


def test_an_edge_that_stays_does_leave_one(release: Release) -> None:
    """Else the test above would prove nothing."""
    stream = list(enumerate(LATE))
    without = vectors(stream[:2], [9], release)["a"]
    assert np.abs(vectors(stream, [9], release)["a"] - without).max() > 1e-2

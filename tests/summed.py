"""Releases of graphs' streams made by hand, at once: a vector is a sum over its rows of what their fields say. And the
oracle: every vector from scratch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from actors.decode import DecodeConfig, make_decoder
from actors.edges import Edges
from actors.embed import encode_anew
from actors.encode import Release
from actors.state import State
from learning.node_table import NodeTable
from schemas.records import F32
from schemas.stream import StreamConfig
from tests.fakes import Record
from tests.releases import write_release

DIM = 6


def make_release(
    releases: Path, number: int, stream: StreamConfig, window: int, generation: int = 1
) -> None:
    """Writes it and names it as current. Its weights follow from its number and the names of the fields."""
    graphs = {"encode": _graph(number, stream)}
    write_release(releases, number, graphs, stream, generation, dim=DIM, window=window)


def from_scratch(
    records: Sequence[Record], release: Path, stream: StreamConfig, window: int
) -> dict[str, tuple[int, F32]]:
    """entity -> (count, vector) of all records at once, in one group."""
    decoder, n = make_decoder(stream, DecodeConfig()), np.arange(len(records))
    decoded, bad = decoder.decode(0, n, n, [r.key for r in records], [r.value for r in records])
    assert not bad
    state = State(stream.shape, window, 0, 256)
    if stream.shape.noded:
        state.nodes = NodeTable(stream.shape, 256)
        if (told := decoded.told) is not None:
            state.nodes.put(told.node, told.features, told.time_us, told.position)
    if stream.nodes:
        decoded = Edges(stream.shape, 0, 1, 1, 1, {}).spread(0, decoded).here
    state.apply(decoded)
    slots = np.array(sorted(state.index.values()), np.int64)
    vectors = encode_anew(state, slots, Release.load(release))
    names = [state.names[slot] or "" for slot in slots.tolist()]
    return {n: (c, v) for n, c, v in zip(names, state.count[slots].tolist(), vectors, strict=True)}


def _graph(number: int, stream: StreamConfig) -> bytes:
    shape, nodes, weights = stream.shape, [], []
    inputs = [
        _input("time_us", TensorProto.INT64, "b", "t"),
        _input("length", TensorProto.INT64, "b"),
    ]

    def node(kind: str, of: list[str], out: str, **more: object) -> str:
        nodes.append(helper.make_node(kind, of, [out], **more))
        return out

    def constant(name: str, value: object) -> str:
        weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def part(prefix: str, axes: tuple[str, ...], widths: tuple[int, int], names: list[str]) -> str:
        """Of numbers and categories, through weights of their own: [axes, DIM]"""
        numbers, categories, missing = (
            f"{prefix}{n}" for n in ("numbers", "categories", "missing")
        )
        found = []
        if widths[0]:
            inputs.append(_input(numbers, TensorProto.FLOAT, *axes, widths[0]))
            nan = node("IsNaN", [numbers], f"{prefix}nan")
            found.append(node("Where", [nan, "nought", numbers], f"{prefix}x"))
        if widths[1]:
            inputs.append(_input(categories, TensorProto.INT64, *axes, widths[1]))
            inputs.append(_input(missing, TensorProto.BOOL, *axes, widths[1]))
            rest = node("Mod", [categories, "prime"], f"{prefix}rest")
            rest = node("Cast", [rest], f"{prefix}cast", to=TensorProto.FLOAT)
            rest = node("Div", [rest, "scale"], f"{prefix}scaled")
            found.append(node("Where", [missing, "nought", rest], f"{prefix}y"))
        both = node("Concat", found, f"{prefix}both", axis=-1)
        rows = [np.random.default_rng([number, *name.encode()]).normal(size=DIM) for name in names]
        constant(f"{prefix}w", np.array(rows, np.float32))
        return node("Tanh", [node("MatMul", [both, f"{prefix}w"], f"{prefix}m")], f"{prefix}out")

    constant("nought", np.float32(0.0))
    constant("prime", np.int64(97))
    constant("scale", np.float32(97.0))
    constant("one", np.array([1]))
    constant("zero", np.int64(0))
    constant("unit", np.int64(1))
    constant("last", np.array([2]))
    constant("bias", np.full(DIM, 0.1, np.float32))
    of_rows = [f.name for f in (*stream.numbers, *stream.categories)]
    each = part("", ("b", "t"), (shape.numbers, shape.categories), of_rows)
    of_node = [f"node.{f.name}" for f in (*stream.node_numbers, *stream.node_categories)]
    widths = shape.node_numbers, shape.node_categories
    if shape.noded:
        far = part("far_", ("b", "t"), widths, [f"far {n}" for n in of_node])
        each = node("Add", [each, far], "with_far")
    steps = node("Gather", [node("Shape", ["time_us"], "size"), "unit"], "steps")
    step = node("Range", ["zero", steps, "unit"], "step")
    there = node("Less", [step, node("Unsqueeze", ["length", "one"], "lengths")], "there")
    mask = node("Unsqueeze", [node("Cast", [there], "mask", to=TensorProto.FLOAT), "last"], "mask3")
    total = node("ReduceSum", [node("Mul", [each, mask], "masked"), "one"], "total", keepdims=0)
    total = node("Add", [total, "bias"], "shifted")
    if shape.noded:
        total = node("Add", [total, part("node_", ("b",), widths, of_node)], "with_own")
    node("LpNormalization", [total], "embedding", axis=-1, p=2)
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["b", DIM])
    graph = helper.make_graph(nodes, "sums", inputs, [out], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _input(name: str, kind: int, *axes: str | int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(axes))

"""Encoders -> ONNX bytes, and the proof that ONNX Runtime computes what PyTorch does.

The first export of an architecture takes seconds; later ones put new bytes into its
initialisers, which takes milliseconds: nothing was folded (`optimize=False`), so every weight
is there under its own name.
"""

import logging
import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from learning.contract import View
from learning.encoders.base import Encoder, RecurrentEncoder
from learning.inline import check_inline
from learning.kinds import plain
from learning.kinds.events import ENCODE_INPUTS, STEP_INPUTS
from schemas.errors import ReleaseError
from schemas.records import Windows
from schemas.stream import CHANNELS, DIRECTION, FAR_VIEW, NEIGHBOUR, NODE_VIEW, ROW_VIEW

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]

OUTPUTS = {
    "encode": ("embedding", "new_state"),
    "step": ("embedding", "new_state"),
    "score": ("score",),
}
EDGES = ("time_us", "numbers", "categories", "missing", "length")  # what `encode` reads of a node
ENDS = ("time_us", "neighbour", "direction", "length")  # what `score` reads of each of two nodes
PAIR = ("source_id", "target_id", "now_us")
PIXELS = "pixels"  # the one input of images
_BY_ROW = frozenset({*ROW_VIEW, *FAR_VIEW})
EXAMINED = 64  # images of a batch, at most, that ONNX Runtime is compared with PyTorch on
_templates: dict[tuple[str, str], onnx.ModelProto] = {}


class _Graph(nn.Module):
    """The encoder with its inputs by position, as a graph has them."""

    def __init__(self, encoder: Encoder, graph: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.graph = graph
        self.names = inputs(graph, encoder)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        view = dict(zip(self.names, tensors, strict=True))
        if self.graph == "score":
            return (scored(self.encoder, view),)
        run = self.encoder if self.graph == "encode" else self.encoder.step
        z_BD, _, extra = run(view)
        return (z_BD, extra["state"]) if "state" in extra else (z_BD,)


def scored(encoder: Encoder, inputs: View) -> Tensor:
    """Logits [P] from the inputs of the graph `score`."""
    return encoder.score(
        _side(inputs, "source"), _side(inputs, "target"), {name: inputs[name] for name in PAIR}
    )


def _side(inputs: View, side: str) -> View:
    of = {name: inputs[f"{side}_{name}"] for name in ENDS}
    columns = {"categories": of["neighbour"], "numbers": of["direction"]}
    return of | {name: column.unsqueeze(2) for name, column in columns.items()}


def ends(view: View, side: str) -> View:
    """A view of nodes as the inputs of one side of the graph `score`."""
    return {
        f"{side}_time_us": view["time_us"],
        f"{side}_neighbour": view["categories"][:, :, NEIGHBOUR].contiguous(),
        f"{side}_direction": view["numbers"][:, :, DIRECTION].contiguous(),
        f"{side}_length": view["length"],
    }


def inputs(graph: str, encoder: Encoder) -> tuple[str, ...]:
    """Names of a graph's inputs, in order; those without columns are left out."""
    shape = encoder.shape
    if shape.side:
        return (PIXELS,)
    if graph == "score":
        return (*(f"{side}_{name}" for side in ("source", "target") for name in ENDS), *PAIR)
    gone = set() if shape.numbers else {"numbers"}
    if not shape.categories:
        gone |= {"categories", "missing"}
    for prefix in ("node", "far"):
        gone |= set() if shape.node_numbers else {f"{prefix}_numbers"}
        if not shape.node_categories:
            gone |= {f"{prefix}_categories", f"{prefix}_missing"}
    names = ENCODE_INPUTS if graph == "encode" else STEP_INPUTS
    if "step" not in encoder.graphs:
        names = EDGES
    names = (*names, *NODE_VIEW, *FAR_VIEW)
    return tuple(name for name in names if name not in gone)


def outputs(graph: str, encoder: Encoder) -> tuple[str, ...]:
    names = OUTPUTS[graph]
    return names if graph == "score" or "step" in encoder.graphs else names[:1]


def export(encoder: Encoder, metadata: Mapping[str, str]) -> dict[str, bytes]:
    """The encoder's graphs (`encode`, and `step` or `score`) as checked ONNX, with `metadata_props`."""
    return {graph: _one(encoder, graph, metadata) for graph in encoder.graphs}


def _one(encoder: Encoder, graph: str, metadata: Mapping[str, str]) -> bytes:
    config = f"{msgspec.json.encode(encoder.config)!r} {encoder.shape}"
    template = _templates.get((graph, config))
    if template is None:
        template = _templates[graph, config] = fresh(encoder, graph)
    model = swapped(template, encoder)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def fresh(encoder: Encoder, graph: str) -> onnx.ModelProto:
    """The graph traced anew; takes seconds."""
    module = _Graph(encoder, graph).eval()
    args = tuple(_example(encoder, module.names, graph).values())
    free = [
        dict.fromkeys(range(_free_axes(name, graph)), torch.export.Dim.AUTO)
        for name in module.names
    ]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecations inside the exporter
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=list(module.names),
            output_names=[f"out_{name}" for name in outputs(graph, encoder)],
            dynamic_shapes=(tuple(free),),
        )
    assert program is not None
    model = _named(program.model_proto, outputs(graph, encoder))
    _assert_free_axes(model, graph)
    _assert_plain(model)
    return model


def _free_axes(name: str, graph: str) -> int:
    """So many of an input's axes are of any length: the batch's, that of rows, height and width of pixels."""
    if name == PIXELS:
        return 3
    if graph == "score":
        return 2 if name.endswith(("_time_us", "_neighbour", "_direction")) else 1
    return 2 if graph == "encode" and name in _BY_ROW else 1


def _named(model: onnx.ModelProto, outputs: tuple[str, ...]) -> onnx.ModelProto:
    """Gives the outputs their names; a value inside that has one (of torch's) is renamed."""
    names = {name: f"inner_{name}" for name in outputs} | {f"out_{n}": n for n in outputs}
    for node in model.graph.node:
        node.ClearField("metadata_props")  # torch's stack traces
        node.ClearField("doc_string")
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = names.get(value.name, value.name)
    return model


def swapped(template: onnx.ModelProto, encoder: Encoder) -> onnx.ModelProto:
    """The template with the encoder's weights and buffers."""
    model = onnx.ModelProto()
    model.CopyFrom(template)
    state = encoder.state_dict()
    found = set()
    for initialiser in model.graph.initializer:
        name = initialiser.name.removeprefix("encoder.")
        if name in state:
            found.add(name)
            array = state[name].detach().cpu().contiguous().numpy()
            if list(array.shape) != list(initialiser.dims):
                raise ReleaseError(f"{name} is {array.shape}, the graph has {initialiser.dims}.")
            initialiser.CopyFrom(onnx.numpy_helper.from_array(array, initialiser.name))
    lost = {name for name in state if not name.startswith(encoder.unexported)} - found
    if "score" in encoder.graphs:  # each of its graphs holds its own part
        of_pairs = any(name.startswith("pairs.") for name in found)
        lost = {name for name in lost if name.startswith("pairs.") == of_pairs}
    if lost:
        raise ReleaseError(f"The exported graph lacks {sorted(lost)}: it cannot carry new weights.")
    return model


def parity(encoder: Encoder, graphs: Mapping[str, bytes], windows: Windows) -> float:
    """Largest difference between ONNX Runtime and PyTorch, at ≥ 3 shapes of each graph, and
    between stepping over a window and encoding it. `windows`: some, the longer the better."""
    view = plain(windows, encoder.config.state)
    if PIXELS in view:
        return _pixel_gap(encoder, session(graphs["encode"]), view)
    longest = view["time_us"].shape[1]
    encode, worst = session(graphs["encode"]), 0.0
    for size in sorted({1, 2, min(3, len(windows)), len(windows)}):
        for length in sorted({1, max(1, longest // 2), longest}):
            part = _trimmed(view, size, length)
            worst = max(worst, _encode_gap(encoder, encode, part))
            if "score" in graphs:
                worst = max(worst, _score_gap(encoder, session(graphs["score"]), part, windows))
    if isinstance(encoder, RecurrentEncoder):
        step = session(graphs["step"])
        for size in (1, len(windows)):
            worst = max(worst, _step_gap(encoder, step, _trimmed(view, size, longest)))
    return worst


def session(model: bytes) -> ort.InferenceSession:
    """One thread, on the CPU. Raises ReleaseError where the graph names other files."""
    check_inline(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(of: ort.InferenceSession, view: View) -> list[npt.NDArray[np.float32]]:
    """The graph's outputs; takes of the view what it has as inputs."""
    result: list[npt.NDArray[np.float32]] = of.run(
        None, {i.name: view[i.name].numpy() for i in of.get_inputs()}
    )
    return result


def _trimmed(view: View, size: int, length: int) -> View:
    """The first `size` windows, their first `length` rows."""
    part = {name: t[:size].contiguous() for name, t in view.items()}
    for name in _BY_ROW & part.keys():
        part[name] = part[name][:, :length].contiguous()
    part["length"] = part["length"].clamp(max=length)
    return part


@torch.no_grad()
def _encode_gap(encoder: Encoder, encode: ort.InferenceSession, view: View) -> float:
    z_BD, _, extra = encoder.eval()(view)
    wanted = [z_BD, extra["state"]] if "state" in extra else [z_BD]
    return max(_gap(g, w) for g, w in zip(run(encode, view), wanted, strict=True))


def _pixel_gap(encoder: Encoder, encode: ort.InferenceSession, view: View) -> float:
    """At several batch sizes, each also with the images cut to another height and width."""
    worst, pixels = 0.0, view[PIXELS]
    side = pixels.shape[1]
    for size in sorted({1, 2, min(3, len(pixels)), min(encoder.at_once, EXAMINED, len(pixels))}):
        for height, width in ((side, side), (side // 2 + 1, side - 1), (side, side // 3 + 1)):
            part = {PIXELS: pixels[:size, :height, :width].contiguous()}
            worst = max(worst, _encode_gap(encoder, encode, part))
    return worst


@torch.no_grad()
def _score_gap(
    encoder: Encoder, score: ort.InferenceSession, view: View, windows: Windows
) -> float:
    """Of every node with the next one, at the moment after both."""
    n = len(view["length"])
    other = torch.roll(torch.arange(n), 1)
    ids = torch.from_numpy(windows.entity[:n].copy())
    newest = view["time_us"].amax(1)
    pair = {"source_id": ids, "target_id": ids[other]}
    pair["now_us"] = torch.maximum(newest, newest[other]) + 1
    shifted = {name: view[name][other] for name in EDGES}
    sides = ends(view, "source") | ends(shifted, "target")
    return _gap(run(score, {**sides, **pair})[0], scored(encoder.eval(), {**sides, **pair}))


@torch.no_grad()
def _step_gap(encoder: RecurrentEncoder, step: ort.InferenceSession, view: View) -> float:
    """Steps over the view in ONNX Runtime, against `encode` of each prefix in PyTorch."""
    worst = 0.0
    records = stepped(encoder, view)
    state = view["state"]
    for t, record in enumerate(records):
        got_z, got_state = run(step, {**record, "state": state})
        state = torch.from_numpy(got_state)
        prefix = _trimmed(view, len(state), t + 1)
        there = view["length"] > t
        if there.any():
            z_BD, _, extra = encoder.eval()(prefix)
            worst = max(worst, _gap(got_z[there.numpy()], z_BD[there]))
            worst = max(worst, _gap(got_state[there.numpy()], extra["state"][there]))
    return worst


def stepped(encoder: RecurrentEncoder, view: View) -> list[View]:
    """The inputs of `step`, but for the state, for each row of the view in turn."""
    shape, out = encoder.shape, []
    totals = view["totals"].clone()
    previous = view["previous_us"]
    for t in range(view["time_us"].shape[1]):
        record = {name: view[name][:, t].contiguous() for name in _BY_ROW & view.keys()}
        record |= {name: view[name] for name in NODE_VIEW if name in view}
        out.append(
            {
                **record,
                "previous_us": previous,
                "totals": totals.clone(),
                "first_us": view["first_us"],
            }
        )
        totals[:, 0] += 1
        totals[:, 1] += record["time_us"] - previous > shape.session_gap_us
        there = torch.logical_not(torch.isnan(record["numbers"]))
        x = torch.where(there, record["numbers"], 0.0).to(torch.float64)
        y = torch.sign(x) * torch.log1p(torch.abs(x))
        totals[:, 2:] += torch.cat([there.to(torch.float64), y, y * y], 1)
        previous = record["time_us"]
    return out


def _gap(got: npt.NDArray[np.float32], wanted: Tensor) -> float:
    difference = np.abs(got.astype(np.float64) - wanted.cpu().numpy().astype(np.float64))
    return float("inf") if not np.isfinite(difference).all() else float(difference.max(initial=0))


def _example(encoder: Encoder, names: tuple[str, ...], graph: str) -> View:
    """Inputs to trace with: no axis is 1 or equal to another by chance."""
    if graph == "score":
        source = _example(encoder, EDGES, "encode")
        longer = {  # neither of one length nor the same tensors: they would be taken for one input
            name: torch.cat([x, x[:, -1:]], 1) if name in _BY_ROW else x.clone()
            for name, x in source.items()
        }
        sides = ends(source, "source") | ends(longer, "target")
        return {name: sides.get(name, torch.arange(3)) for name in names}
    b, t, shape = 3, min(5, encoder.config.window), encoder.shape
    if shape.side:
        return {PIXELS: torch.zeros(b, 20, 28, CHANNELS, dtype=torch.uint8)}
    at = () if graph == "step" else (t,)
    made = {
        "time_us": torch.arange(b * (t if at else 1)).reshape(b, *at) * 1_000_000,
        "numbers": torch.zeros(b, *at, shape.numbers),
        "categories": torch.zeros(b, *at, shape.categories, dtype=torch.int64),
        "missing": torch.zeros(b, *at, shape.categories, dtype=torch.bool),
        "length": torch.full((b,), t),
        "previous_us": torch.zeros(b, dtype=torch.int64),
        "totals": torch.zeros(b, shape.totals, dtype=torch.float64),
        "first_us": torch.zeros(b, dtype=torch.int64),
        "state": torch.zeros(b, encoder.config.state),
    }
    for prefix, axes in (("node", ()), ("far", at)):
        made |= {
            f"{prefix}_numbers": torch.zeros(b, *axes, shape.node_numbers),
            f"{prefix}_categories": torch.zeros(b, *axes, shape.node_categories, dtype=torch.int64),
            f"{prefix}_missing": torch.zeros(b, *axes, shape.node_categories, dtype=torch.bool),
        }
    return {name: made[name] for name in names}


def _assert_free_axes(model: onnx.ModelProto, graph: str) -> None:
    for value in (*model.graph.input, *model.graph.output):
        axes = value.type.tensor_type.shape.dim
        frozen = [i for i in range(_free_axes(value.name, graph)) if not axes[i].dim_param]
        if frozen:
            raise ReleaseError(f"Export froze axis {frozen} of {graph}'s {value.name}.")


def _assert_plain(model: onnx.ModelProto) -> None:
    """No custom operators; no scatter, which some providers compute in a racy order."""
    for node in model.graph.node:
        if node.op_type.startswith("Scatter"):
            raise ReleaseError(f"The exported graph holds {node.op_type}: rewrite it as a gather.")
    if model.functions or {o.domain for o in model.opset_import} - {"", "ai.onnx"}:
        raise ReleaseError(f"The exported graph needs more than ONNX: {model.opset_import}.")

"""What the publisher asks of encoders and graphs: vectors of many windows, and a graph's interface."""

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.encode import session
from actors.served import file_of
from schemas.published import ANCHORS, IMAGES_RULE, OF_NODES, Input
from schemas.records import Windows
from schemas.stream import StreamConfig

if TYPE_CHECKING:
    from torch import Tensor

    from learning.contract import View
    from learning.encoders.base import Encoder

PART_BYTES = 4 << 20  # of windows that are encoded at once


def of_encoder(encoder: "Encoder", windows: Windows) -> "Tensor":
    import torch

    def run(view: "View") -> "Tensor":
        with torch.no_grad():
            z_BD: Tensor = encoder.eval()(view).z_BD
            return z_BD

    return in_parts(windows, encoder.config.state, run)


def in_parts(windows: Windows, state: int, run: Callable[["View"], Any]) -> "Tensor":
    """Vectors [B, D] of many windows, a few hundred at a time; fewer where they are large."""
    import torch

    from learning.kinds import plain
    from learning.kinds.events import subset

    each = windows.nbytes // max(1, len(windows))
    most = min(256, max(8, PART_BYTES // max(1, each)))
    order = np.argsort(np.diff(windows.offsets), kind="stable")  # like lengths together
    found = [
        torch.as_tensor(run(plain(subset(windows, at), state)))
        for at in np.split(order, np.arange(most, len(order), most))
        if len(at)
    ]
    vectors = torch.cat(found) if found else torch.zeros(0, 1)
    return vectors[torch.as_tensor(np.argsort(order))]


def some(windows: Windows, most: int) -> Windows:
    """The longest `most` windows, so that parity is tried on many rows."""
    from learning.kinds.events import subset

    return subset(windows, np.argsort(-np.diff(windows.offsets), kind="stable")[:most])


def interface(graph: bytes) -> tuple[tuple[Input, ...], tuple[Input, ...]]:
    loaded = session(graph, 1)

    def described(found: Any) -> tuple[Input, ...]:
        return tuple(
            Input(i.name, i.type.removeprefix("tensor(").rstrip(")"), tuple(i.shape)) for i in found
        )

    return described(loaded.get_inputs()), described(loaded.get_outputs())


def described(graphs: Mapping[str, bytes]) -> dict[str, Any]:
    """What a manifest says of each graph."""
    out: dict[str, Any] = {}
    for graph, data in graphs.items():
        out[graph], out[f"{graph}_out"] = interface(data)
        out[f"{graph}_sha256"] = hashlib.sha256(data).hexdigest()
    return out


def files(graphs: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    return [(file_of(graph), data) for graph, data in graphs.items()]


def of_stream(stream: StreamConfig) -> dict[str, Any]:
    """What a manifest says of the records, and of which of them a vector is made."""
    of_nodes = OF_NODES if stream.shape.noded else ""
    return {
        "entity": stream.entity,
        "time": stream.time,
        "time_unit": stream.time_unit,
        "fields": stream.field,
        "numbers": tuple(f.name for f in stream.numbers),
        "categories": tuple(f.name for f in stream.categories),
        "node_fields": stream.node,
        "node_numbers": tuple(f.name for f in stream.node_numbers),
        "node_categories": tuple(f.name for f in stream.node_categories),
        "side": stream.shape.side,
        "pixels": IMAGES_RULE if stream.images else "",
        "session_gap_us": stream.shape.session_gap_us,
        "anchor": ANCHORS[stream.shape.unit] + of_nodes,
    }

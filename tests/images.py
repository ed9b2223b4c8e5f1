"""Images whose vectors can be told by hand: a release whose graph takes an image's mean colour through a matrix."""

import io
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from schemas.records import F32, U8
from schemas.stream import ImageConfig, StreamConfig
from tests.fakes import Record
from tests.releases import write_release

SIDE, DIM = 8, 3
STREAM = StreamConfig(kind="image", image=ImageConfig(side=SIDE), time_unit="s")


def png(colour: tuple[int, int, int], side: int = SIDE) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, "PNG")
    return file.getvalue()


def image(who: str, at: int, colour: tuple[int, int, int], group: int = 0) -> Record:
    headers = [("time", b"%d" % at)]
    return Record(png(colour), who.encode(), group, time_ms=at * 1000, headers=headers)


def matrix(release: int) -> F32:
    """[3, DIM]"""
    return np.random.default_rng(release).normal(size=(3, DIM)).astype(np.float32)


def vector(release: int, colour: tuple[int, int, int]) -> F32:
    """What the release's graph makes of an image of this colour. [DIM]"""
    z = np.array(colour, np.float32) / 255 @ matrix(release) + np.float32(0.1)
    return np.asarray(z / np.linalg.norm(z), np.float32)


def mean(vectors: list[F32]) -> F32:
    total = np.sum(vectors, 0)
    return np.asarray(total / np.linalg.norm(total))


def make_release(
    releases: Path,
    number: int,
    window: int = 1,
    stream: StreamConfig = STREAM,
    generation: int = 1,
) -> None:
    """Writes it and names it as current."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
        helper.make_node("Add", ["y", "b"], ["z"]),
        helper.make_node("LpNormalization", ["z"], ["embedding"], axis=-1, p=2),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["b", "h", "w", 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["b", DIM])],
        [
            numpy_helper.from_array(np.array([1, 2]), "axes"),
            numpy_helper.from_array(matrix(number) / np.float32(255), "w"),
            numpy_helper.from_array(np.full(DIM, 0.1, np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    graphs = {"encode": model.SerializeToString()}
    write_release(releases, number, graphs, stream, generation, dim=DIM, window=window)


def pixels(colours: list[tuple[int, int, int]]) -> U8:
    """[N, SIDE·SIDE·3]"""
    return np.array([np.tile(c, SIDE * SIDE) for c in colours], np.uint8)

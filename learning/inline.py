"""ONNX files whose weights are all inside: whatever names another file is refused before it is opened.

A tensor may say that its bytes lie in a file of any path, and ONNX Runtime reads that file. So the parts that
may hold tensors are walked here, without the onnx package, which shards do not load.
Format: https://protobuf.dev/programming-guides/encoding and onnx.proto3."""

from collections.abc import Iterator

from schemas.errors import ReleaseError

_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of TensorProto
# message -> field -> the message in it; fields that hold no tensor are passed over
_PARTS = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_DEEPEST = 64


def check_inline(model: bytes) -> None:
    """Raises ReleaseError where a tensor is outside the file, or the file is no ONNX model."""
    if model[4:8] == b"ORTM":
        raise ReleaseError("the graph is in ONNX Runtime's own format; needed is ONNX.")
    try:
        _walk(memoryview(model), "Model", 0)
    except (IndexError, ValueError) as error:
        raise ReleaseError(f"the graph is no ONNX model: {error}.") from None


def _walk(data: memoryview, kind: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    parts = _PARTS[kind]
    for field, value in _fields(data):
        if kind == "Tensor" and field in (_EXTERNAL_DATA, _DATA_LOCATION) and value != 0:
            raise ReleaseError(
                "the graph keeps a tensor in another file, which is never opened. Export it with its weights "
                "inside (onnx.save_model without save_as_external_data)."
            )
        if field in parts:
            if isinstance(value, int):
                raise ValueError(f"field {field} of a {kind} is no message")
            _walk(value, parts[field], depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field; those of fixed size as 0."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        field, wire = tag >> 3, tag & 7
        if field == 0:
            raise ValueError("a field without a number")
        if wire == 0:
            value, at = _varint(data, at)
            yield field, value
        elif wire == 2:
            size, at = _varint(data, at)
            if size > len(data) - at:
                raise ValueError("it is cut short")
            yield field, data[at : at + size]
            at += size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            if at > len(data):
                raise ValueError("it is cut short")
            yield field, 0
        else:
            raise ValueError(f"wire type {wire}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without an end")

"""The words for what is published: Redis keys and the manifest of a release. See docs/contract.md."""

from typing import Any

import msgspec
import numpy as np

from schemas.stream import Field, Unit


def current_key(stream: str) -> str:
    return f"afresh:{stream}:current"


def entity_key(stream: str, generation: int, entity: str) -> str:
    return f"afresh:{stream}:g{generation}:{entity}"


def encoder_key(stream: str, release: int) -> str:
    return f"afresh:{stream}:encoder:{release}"


def releases_key(stream: str) -> str:
    return f"afresh:{stream}:releases"


def group_key(stream: str, group: int) -> str:
    return f"afresh:{stream}:group:{group}"


EDGE = np.dtype([("time_us", "<i8"), ("neighbour", "<i8"), ("direction", "<f4")])
"""What a node's field `neighbours` holds, packed, of each of its edges, the oldest first: when, with whom
(category_hash of the name), and 1.0 where the node is the edge's source. `score` reads two nodes' edges."""


OF_RECORDS = "w = n if n < L/2 else L/2 + n mod (L/2); newest w rows by (time, topic, offset)"
OF_EDGES = "of the newest L rows of the node by (time, topic, offset) the edges that no row among them removes"
OF_GRAPHS = "of the newest L rows of the graph by (time, topic, offset) the edges that no row among them removes"
OF_NODES = (
    "; with what was said last of the node and of each edge's far node, by (time, topic, offset)"
)
IMAGES_RULE = (
    "the first frame of a JPEG, PNG or WebP as Pillow decodes it, a JPEG drafted to (2S, 2S); grey of 16 bits by its "
    "upper 8; with any transparency as RGBA, else as L or RGB; the whole of it resized to S x S by "
    "Image.resize(BILINEAR, reducing_gap=2.0); composited on white; turned as EXIF says; RGB, row by row"
)
"""Encoded bytes -> uint8 [S, S, 3]: `shrunk` in actors/pixels.py."""
OF_IMAGES = (
    "the mean, scaled to unit length, of the vectors that `release` made of the entity's newest L images by (time, "
    "topic, offset); of an image that came before the release, only where it was kept"
)
ANCHORS: dict[Unit, str] = {
    "events": OF_RECORDS,
    "node": OF_EDGES,
    "graph": OF_GRAPHS,
    "image": OF_IMAGES,
}


class Input(msgspec.Struct, frozen=True):
    """One input or output of a graph: ONNX name, dtype, shape (numbers, or names of free axes)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Overlap(msgspec.Struct, frozen=True):
    """How far two releases agree on held-out entities."""

    release: int
    entities: int
    cosine: float  # mean cosine of the two vectors of one entity
    neighbours: float  # mean share of common nearest neighbours (10)


class Gate(msgspec.Struct, frozen=True):
    """One check a release had to pass."""

    name: str
    value: float
    threshold: float
    ok: bool


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What someone needs to encode records as the daemon does."""

    format: int = 1
    stream: str
    release: int
    generation: int
    created_us: int
    dim: int
    window: int  # L of the anchor rule
    entity: str  # path of the entity's name in a record
    time: str  # path of its time
    time_unit: str  # auto | s | ms | us | iso
    fields: tuple[Field, ...]  # name, type, path and default of each input, as in the settings
    numbers: tuple[str, ...]  # names of the number columns, in order
    categories: tuple[str, ...]
    node_fields: tuple[Field, ...] = ()  # of a graph: what nodes have of their own
    node_numbers: tuple[str, ...] = ()
    node_categories: tuple[str, ...] = ()
    side: int = 0  # S of images, which are resized to S × S pixels,
    pixels: str = ""  # by this rule
    session_gap_us: int
    state: int  # width of the recurrent state
    encoder: dict[str, Any] = {}  # its settings; another generation begins where they are others
    encode: tuple[Input, ...]
    encode_out: tuple[Input, ...]
    encode_sha256: str
    step: tuple[Input, ...] = ()  # empty where the encoder has no such graph
    step_out: tuple[Input, ...] = ()
    step_sha256: str = ""
    score: tuple[Input, ...] = ()  # of pairs of nodes, where the stream is a graph
    score_out: tuple[Input, ...] = ()
    score_sha256: str = ""
    category_hash: str = "xxh3_64(seed=0) of the UTF-8 text as two's complement int64"
    anchor: str = OF_RECORDS
    snapshot: str = ""  # the learner snapshot it came from
    updates: int = 0  # optimiser updates behind it
    gates: tuple[Gate, ...] = ()
    overlap_previous: Overlap | None = None
    overlap_first: Overlap | None = None

    @property
    def kept(self) -> int:
        """Width of what a shard keeps beside an entity's rows, or of images beside each."""
        return self.dim if self.side else self.state


def anchored_window(n: int, window: int) -> int:
    """How many of the newest rows the vector after an entity's n-th record encodes.

    After n records: all of them below window/2, then window/2 + n mod (window/2)."""
    half = window // 2
    return n if n < half else half + n % half

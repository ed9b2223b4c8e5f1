"""The words for what a stream's records hold: `[stream]` of the settings file, and the widths of the columns.

Shapes: Fn number-like fields, Fc category fields, K = 2 + 3·Fn running totals.
"""

from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from schemas.errors import SettingsError

DIRECTION = 0
"""Of a graph's `numbers`: 1 where the node is the edge's source, 0 where it is its destination."""
NEIGHBOUR, EDGE_TYPE = 0, 1
"""Of a graph's `categories`: the far node's name, and the edge's type where the stream names one.

A row whose neighbour is `missing` is a tombstone: the edge of this hash (and type) was removed."""
ENDS = slice(0, 2)
"""Of `categories` where an entity is a whole graph: the edge's source and neighbour, then its type. Both ends
of a tombstone are `missing`."""
TOMBSTONE = 0
"""Of `missing`, whatever the unit: the row removes an edge."""
RESERVED = ("direction", "neighbour", "edge_type")
WHOLE_RESERVED = ("source", "neighbour", "edge_type")
"""Names of a graph's own columns, of unit "node" and of whole graphs."""
ROW_VIEW = ("time_us", "numbers", "categories", "missing")
FAR_VIEW = ("far_numbers", "far_categories", "far_missing")
NODE_VIEW = ("node_numbers", "node_categories", "node_missing")
"""Inputs of an encoder: of each row; of each row's far node; of the node itself."""
Unit: TypeAlias = Literal["events", "node", "graph", "image"]
"""What is embedded: an entity by its records, a node of the one graph, each of many graphs, an entity by its images."""
LABEL = 0
"""Of an image's `categories`: its label, where a header gave one. It is carried along, and no input of an encoder."""
CHANNELS = 3
URI_BYTES = 512
"""Longest URI of an image that is kept, in UTF-8."""


class FieldType(StrEnum):
    category = "category"  # text or integer -> 64-bit hash
    number = "number"  # float32; NaN is missing
    flag = "flag"  # true/false -> a number 1.0/0.0
    time = "time"  # an instant -> a number: its seconds after the record's own time


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input of a record. `path` (dots go into nested objects) defaults to `name`."""

    name: str
    type: FieldType
    path: str = ""
    default: str | int | float | bool | None = None

    @property
    def where(self) -> str:
        return self.path or self.name


ImageFormat: TypeAlias = Literal["jpeg", "png", "webp"]
Keep: TypeAlias = Literal["pixels", "uri", "nothing"]


class ImageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[stream.image]`: what of an image is kept, and which images are taken."""

    side: Annotated[int, Meta(ge=8, le=1024)] = 32
    """S: an image is resized to S × S pixels of RGB, of which vectors are made and learnt."""
    keep: Keep = "pixels"
    """What a new release encodes again: the resized pixels, the image behind its URI, or nothing."""
    formats: tuple[ImageFormat, ...] = ("jpeg", "png", "webp")
    max_pixels: Annotated[int, Meta(ge=64)] = 50_000_000
    """Width times height, as the file's header says: more is refused before it is decoded."""
    max_side: Annotated[int, Meta(ge=8)] = 20_000
    threads: Annotated[int, Meta(ge=1, le=64)] = 2
    """Threads that decode."""
    uri: str = "uri"
    """Where a value is JSON: the path of the image's URI in it."""
    uri_roots: tuple[str, ...] = ()
    """URIs are fetched that begin with one of these ("s3://bucket/", "file:///data/images/"); none: no URI is."""
    max_bytes: Annotated[int, Meta(ge=64)] = 20_000_000
    """Of a file behind a URI. Of a message: decode.max_message_bytes."""
    fetches: Annotated[int, Meta(ge=1, le=256)] = 16
    """Files that are fetched at the same time,"""
    fetch_s: Annotated[float, Meta(gt=0)] = 10.0
    """each for so long,"""
    fetch_tries: Annotated[int, Meta(ge=1, le=20)] = 3
    """and so often."""
    label: str = "label"
    """Name of the header with an image's label, which is used for nothing but measuring."""
    duplicate: Annotated[float, Meta(gt=0, le=4)] | None = None
    """An image whose descriptor is so like that of a recent one, score-normalised, is not learnt from."""

    def __post_init__(self) -> None:
        if not self.formats:
            raise SettingsError(
                'stream.image.formats is empty; name at least one: ["jpeg", "png", "webp"].'
            )
        if self.keep == "uri" and not self.uri_roots:
            raise SettingsError(
                'stream.image.keep is "uri" and stream.image.uri_roots is empty: no URI may be fetched. Name '
                'where the images are, as in ["s3://bucket/"].'
            )

    @property
    def sides(self) -> tuple[int, ...]:
        """S, and those that are made beside it."""
        return (self.side,)


class SidesConfig(ImageConfig, frozen=True, forbid_unknown_fields=True):
    """What a shard makes of it while releases of other sides are served or filled; no settings file says it."""

    others: tuple[int, ...] = ()

    @property
    def sides(self) -> tuple[int, ...]:
        return (self.side, *self.others)


class StreamConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a record holds: `[stream]` of the settings file."""

    entity: str = ""  # of an image: its message's key
    time: str = ""  # of an image: the name of a header, "time" where nothing is said
    field: tuple[Field, ...] = ()
    kind: Literal["events", "graph", "image"] = "events"
    unit: Literal["node", "graph"] = "node"  # graph: what is embedded, and named by `entity`
    source: str = ""  # unit "graph": path of the edge's first node
    neighbour: str = ""  # graph: path of the far node; of unit "node" `entity` is the edge's source
    op: str = ""  # graph: path of "add" or "remove"; nothing there is "add"
    edge_type: str = ""  # graph: path of the edge's type
    node: tuple[Field, ...] = ()  # graph: what a record whose op is "node" says of its entity
    image: ImageConfig = ImageConfig()  # kind "image"
    time_unit: Literal["auto", "s", "ms", "us", "iso"] = "auto"
    session_gap_s: Annotated[float, Meta(gt=0)] = 1800.0

    def __post_init__(self) -> None:
        if self.kind == "image":
            self._check_image()
            return
        if self.image != ImageConfig():
            raise SettingsError(
                f'[stream.image] is for images, and stream.kind is "{self.kind}". Remove it, or set '
                'stream.kind = "image".'
            )
        for key in ("entity", "time"):
            if not getattr(self, key):
                raise SettingsError(f"stream.{key} is missing: name its path in a record.")
        names = [field.name for field in self.field]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SettingsError(f"stream.field: the name {twice[0]!r} is there twice; rename one.")
        if self.graph:
            self._check_graph(names)
            return
        if not names:
            raise SettingsError("stream.field is empty; name at least one input of a record.")
        if self.unit == "graph":
            raise SettingsError(
                f'stream.unit is "graph" and stream.kind is "{self.kind}". Set stream.kind = "graph", or '
                "remove stream.unit."
            )
        for key in ("source", "neighbour", "op", "edge_type", "node"):
            if getattr(self, key):
                raise SettingsError(
                    f'stream.{key} is for edges, and stream.kind is "{self.kind}". Remove it, or set '
                    'stream.kind = "graph".'
                )

    def _check_image(self) -> None:
        for key in ("entity", "field", "source", "neighbour", "op", "edge_type", "node"):
            if getattr(self, key):
                raise SettingsError(
                    f'stream.{key} is for events and edges, and stream.kind is "image": the entity is the '
                    "message's key, and the image its value. Remove it."
                )
        if self.unit != "node":
            raise SettingsError('stream.unit is for graphs, and stream.kind is "image". Remove it.')

    def _check_graph(self, names: list[str]) -> None:
        if not self.neighbour:
            raise SettingsError(
                'stream.kind is "graph" and stream.neighbour is missing: name the path of the far node.'
            )
        if self.whole and not self.source:
            raise SettingsError(
                'stream.unit is "graph" and stream.source is missing: stream.entity names the graph of an edge, '
                "stream.source and stream.neighbour its two nodes."
            )
        if self.source and not self.whole:
            raise SettingsError(
                'stream.source is for stream.unit = "graph", and stream.unit is "node", where stream.entity is '
                "the edge's source. Remove stream.source, or set stream.unit."
            )
        every = (self.entity, self.source, self.neighbour, self.time, self.op, self.edge_type)
        paths = [p for p in every if p]
        twice = sorted({p for p in paths if paths.count(p) > 1})
        if twice:
            raise SettingsError(
                f"stream: {twice[0]!r} is named twice; entity, source, neighbour, time, op and edge_type of an "
                "edge are values of their own."
            )
        if self.node and self.whole:
            raise SettingsError(
                'stream.node is for graphs whose nodes are embedded, and stream.unit is "graph". Remove it; '
                "what is known of the nodes of an edge can be fields of the edge."
            )
        if self.node and not self.op:
            raise SettingsError(
                'stream.node is given and stream.op is missing: a record of a node is one whose op is "node". '
                "Name the path of op."
            )
        of_nodes = [field.name for field in self.node]
        twice = sorted({name for name in of_nodes if of_nodes.count(name) > 1})
        if twice:
            raise SettingsError(f"stream.node: the name {twice[0]!r} is there twice; rename one.")
        taken = WHOLE_RESERVED if self.whole else RESERVED
        reserved = [name for name in names if name in taken]
        if reserved:
            raise SettingsError(
                f"stream.field: {reserved[0]!r} is a column that every graph has; choose another name."
            )

    @property
    def graph(self) -> bool:
        return self.kind == "graph"

    @property
    def images(self) -> bool:
        return self.kind == "image"

    @property
    def whole(self) -> bool:
        """An entity is a graph of many edges: a record is a row of it alone."""
        return self.graph and self.unit == "graph"

    @property
    def nodes(self) -> bool:
        """Entities are the nodes of one graph: a record is a row of both its ends."""
        return self.graph and not self.whole

    @property
    def own_numbers(self) -> tuple[Field, ...]:
        """The stream's fields kept as float32, without a graph's own column."""
        return tuple(field for field in self.field if field.type is not FieldType.category)

    @property
    def numbers(self) -> tuple[Field, ...]:
        """All that is kept as float32, in the order of the columns."""
        first = (Field(RESERVED[0], FieldType.flag),) if self.nodes else ()
        return first + self.own_numbers

    @property
    def categories(self) -> tuple[Field, ...]:
        first: tuple[Field, ...] = ()
        if self.images:
            return (Field("label", FieldType.category, self.image.label),)
        if self.graph:
            if self.whole:
                first = (Field(WHOLE_RESERVED[0], FieldType.category, self.source),)
            first += (Field(RESERVED[1], FieldType.category, self.neighbour),)
            if self.edge_type:
                first += (Field(RESERVED[2], FieldType.category, self.edge_type),)
        return first + tuple(f for f in self.field if f.type is FieldType.category)

    @property
    def inputs(self) -> tuple[Field, ...]:
        """All fields that are named, of records and of nodes."""
        return self.field + self.node

    @property
    def node_numbers(self) -> tuple[Field, ...]:
        return tuple(f for f in self.node if f.type is not FieldType.category)

    @property
    def node_categories(self) -> tuple[Field, ...]:
        return tuple(f for f in self.node if f.type is FieldType.category)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns, numbers first; those of nodes last."""
        of_nodes = (f"node.{f.name}" for f in (*self.node_numbers, *self.node_categories))
        return (*(f.name for f in (*self.numbers, *self.categories)), *of_nodes)

    @property
    def shape(self) -> "Shape":
        return Shape(
            len(self.numbers),
            len(self.categories),
            round(self.session_gap_s * 1e6),
            self.graph,
            bool(self.edge_type),
            len(self.node_numbers),
            len(self.node_categories),
            self.whole,
            self.image.side if self.images else 0,
            self.image.keep if self.images else "nothing",
            self.image.sides[1:] if self.images else (),
        )


class Shape(msgspec.Struct, frozen=True):
    """Widths of the columns, and the gap that opens a new session."""

    numbers: int
    categories: int
    session_gap_us: int = 1_800_000_000
    graph: bool = False  # rows are edges, and begin with the columns of DIRECTION and NEIGHBOUR
    typed: bool = False  # ... and EDGE_TYPE
    node_numbers: int = 0  # of a graph: what nodes have of their own
    node_categories: int = 0
    whole: bool = False  # rows are edges of the entity, a graph, and begin with the columns of ENDS
    side: int = 0  # S of images; 0: rows are none
    keep: Keep = "nothing"  # of an image, in an entity's ring
    others: tuple[int, ...] = ()  # further sides of images, whose pixels stand behind those of S

    @property
    def noded(self) -> bool:
        """Whether nodes have features of their own."""
        return self.node_numbers + self.node_categories > 0

    @property
    def unit(self) -> Unit:
        """What an entity is; encoder, objectives and learner go by it."""
        if self.side:
            return "image"
        if not self.graph:
            return "events"
        return "graph" if self.whole else "node"

    @property
    def totals(self) -> int:
        """K: count, sessions, then per number field how many are there, their sum, their squares' sum."""
        return 2 + 3 * self.numbers

    @property
    def sides(self) -> tuple[int, ...]:
        """S and `others`; none where rows are no images."""
        return (self.side, *self.others) if self.side else ()

    @property
    def pixels(self) -> int:
        """P: bytes of an image, S · S · 3 for each of its sides."""
        return sum(CHANNELS * side**2 for side in self.sides)

    @property
    def kept_pixels(self) -> int:
        """... in an entity's ring."""
        return self.pixels if self.keep == "pixels" else 0

    @property
    def kept_uri(self) -> int:
        """Bytes of an image's URI in an entity's ring."""
        return URI_BYTES if self.keep == "uri" else 0

    @property
    def row_bytes(self) -> int:
        """Of one row of a ring, but for an image's vector."""
        of_image = 8 + self.kept_pixels + self.kept_uri if self.side else 0
        return 16 + 4 * self.numbers + 9 * self.categories + of_image

    @property
    def node_bytes(self) -> int:
        """Of one node's `Features`."""
        return 4 * self.node_numbers + 9 * self.node_categories

"""Settings of the encoder and the learner: `[encoder]` and `[learner]`. Needs no torch."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from learning.config_base import (
    Count,
    EncoderBase,
    ObjectiveBase,
    Positive,
    Share,
    SliceBase,
    refuse,
)
from learning.config_images import (
    BarlowTwinsConfig,
    ByolConfig,
    CassleConfig,
    DinoConfig,
    GmmlConfig,
    ImageObjectives,
    ImageViews,
    InstanceConfig,
    MocoV3Config,
    SigregConfig,
    SimclrConfig,
    SscdConfig,
    SwavConfig,
    TimmConfig,
    WMseConfig,
)
from schemas.errors import SettingsError
from schemas.stream import Unit


class GruConfig(EncoderBase, frozen=True, forbid_unknown_fields=True, tag="gru"):
    """Gated recurrent units, `[encoder] name = "gru"`."""


class LinearRecurrenceConfig(
    EncoderBase, frozen=True, forbid_unknown_fields=True, tag="linear_recurrence"
):
    """A gated linear recurrence, parallel in training: `name = "linear_recurrence"`."""


class GraphBase(EncoderBase, frozen=True, forbid_unknown_fields=True):
    """What all encoders of a graph's nodes share."""

    window: Annotated[int, Meta(ge=4, le=256)] = 20  # K: most recent edges of a node; memory is K²
    neighbour_ids: bool = False  # neighbours' hashed names are an input of the vector
    pair_hidden: Annotated[int, Meta(ge=1, le=4096)] = 32  # width of the pair scorer's tokens

    @property
    def state(self) -> int:
        """Nothing recurs."""
        return 0


class TemporalAttentionConfig(
    GraphBase, frozen=True, forbid_unknown_fields=True, tag="temporal_attention"
):
    """Attention over a node's most recent edges, for graphs: `name = "temporal_attention"`."""

    heads: Annotated[int, Meta(ge=1, le=64)] = 2
    edge_presence: bool = False  # logits are scaled by how likely the edge is: SuperGAT's MX

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % self.heads:
            raise refuse("encoder.hidden", self.hidden, f"it must be a multiple of {self.heads}")


class GraphMixerConfig(GraphBase, frozen=True, forbid_unknown_fields=True, tag="graph_mixer"):
    """An MLP that mixes a node's most recent edges, for graphs: `name = "graph_mixer"`."""


class GraphMemoryConfig(GraphBase, frozen=True, forbid_unknown_fields=True, tag="graph_memory"):
    """A memory of each node, a GRU over its edges, for graphs: `name = "graph_memory"`."""


class GraphIsomorphismConfig(
    EncoderBase, frozen=True, forbid_unknown_fields=True, tag="graph_isomorphism"
):
    """Message passing over the edges of a whole graph: `name = "graph_isomorphism"`."""

    window: Annotated[int, Meta(ge=4, le=256)] = 64  # a graph's newest edges; memory is its square
    rounds: Annotated[int, Meta(ge=1, le=16)] = 3  # a node knows what is so many edges away
    directed: bool = False  # which end is an edge's source is an input

    @property
    def state(self) -> int:
        """Nothing recurs."""
        return 0


EncoderConfig = (
    GruConfig
    | LinearRecurrenceConfig
    | TemporalAttentionConfig
    | GraphMixerConfig
    | GraphMemoryConfig
    | GraphIsomorphismConfig
    | TimmConfig
)


class ColesConfig(SliceBase, frozen=True, forbid_unknown_fields=True, tag="coles"):
    """Contrastive learning of slices of one entity's events."""

    margin: Positive = 0.5  # negatives further apart than this cost nothing
    negatives: Count = 5  # hardest ones per slice


class VicregConfig(SliceBase, frozen=True, forbid_unknown_fields=True, tag="vicreg"):
    """Variance, invariance, covariance on pairs of slices."""

    invariance: Positive = 25.0
    variance: Positive = 25.0
    covariance: Positive = 1.0
    expander: Annotated[int, Meta(ge=2)] = 256


class BagConfig(SliceBase, frozen=True, forbid_unknown_fields=True, tag="bag"):
    """Prediction, from a slice's vector, of the categories in the entity's other slices."""

    weight: Positive = 0.1
    bucket_bits: Annotated[int, Meta(ge=1, le=16)] = 10  # of the predicted category, its lowest


class MlemConfig(ObjectiveBase, frozen=True, forbid_unknown_fields=True, tag="mlem"):
    """Prediction of the next event: a generative head beside another objective, or alone."""

    category: Annotated[float, Meta(ge=0)] = 1.0
    number: Annotated[float, Meta(ge=0)] = 1.0
    time: Annotated[float, Meta(ge=0)] = 1.0
    bucket_bits: Annotated[int, Meta(ge=1, le=16)] = 8  # of the predicted category, its lowest


class NextInteractionConfig(
    ObjectiveBase, frozen=True, forbid_unknown_fields=True, tag="next_interaction"
):
    """Which node does the next edge of a node lead to: contrast with other nodes (graphs)."""

    historical: Annotated[int, Meta(ge=0, le=256)] = 10  # earlier neighbours of the source
    matched: Annotated[int, Meta(ge=0, le=256)] = 5  # ends of recent edges: busy nodes more often
    random: Annotated[int, Meta(ge=0, le=256)] = 5  # any known nodes
    temperature: Positive = 0.2
    vectors: Annotated[float, Meta(ge=0)] = 1.0  # weight of the contrast of vectors
    pairs: Annotated[float, Meta(ge=0)] = 1.0  # ... and of the pair scorer's

    def __post_init__(self) -> None:
        if not self.historical + self.matched + self.random:
            raise refuse("learner.objective.random", 0, "a contrast needs at least one negative")
        if not self.vectors + self.pairs:
            raise refuse("learner.objective.pairs", 0, "or vectors, must have a weight")

    @property
    def nodes(self) -> int:
        """C: of an example, source and target included."""
        return 2 + self.historical + self.matched + self.random


class GraceConfig(SliceBase, frozen=True, forbid_unknown_fields=True, tag="grace"):
    """Contrast of two views of a node, without some of its edges and of the nodes' fields (graphs)."""

    shortest: Annotated[float, Meta(gt=0, le=1)] = 0.6
    longest: Annotated[float, Meta(gt=0, le=1)] = 0.8
    hidden: Share = 0.3  # of the nodes' fields, in each view
    temperature: Positive = 0.4
    projection: Count = 128  # width of the head that the loss looks at

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slices != 2:
            needs = "grace compares two views of a node"
            raise refuse("learner.objective.slices", self.slices, needs)


class GraphmaeConfig(ObjectiveBase, frozen=True, forbid_unknown_fields=True, tag="graphmae"):
    """Prediction of what hidden nodes have of their own, from their neighbours (graphs)."""

    masked: Annotated[float, Meta(gt=0, lt=1)] = 0.5  # share of the nodes
    gamma: Annotated[float, Meta(ge=1)] = 2.0  # power of the cosine error
    hidden: Count = 128  # width of the decoder
    bucket_bits: Annotated[int, Meta(ge=1, le=16)] = 8  # of the predicted category, its lowest
    walk: Annotated[int, Meta(ge=2, le=256)] = 4  # nodes of each walk that nodes are drawn by


class BandanaConfig(ObjectiveBase, frozen=True, forbid_unknown_fields=True, tag="bandana"):
    """Prediction of how much of each edge's message was let through, from both ends (graphs)."""

    temperature: Positive = 1.0  # the higher, the more alike are a node's edges
    hidden: Count = 64  # width of the head
    walk: Annotated[int, Meta(ge=2, le=256)] = 4  # nodes of each walk that nodes are drawn by


class Node2vecConfig(ObjectiveBase, frozen=True, forbid_unknown_fields=True, tag="node2vec"):
    """Nodes near each other on walks are alike (graphs)."""

    walk: Annotated[int, Meta(ge=2, le=256)] = 8  # nodes of a walk
    context: Count = 3  # steps apart, at most, of a pair
    returns: Positive = 1.0  # p: the higher, the more rarely a walk goes straight back
    onward: Positive = 1.0  # q: the higher, the nearer it keeps to where it came from
    others: Count = 128  # nodes that all pairs are contrasted with, by degree^0.75
    negatives: Positive = 5.0  # so many of them weigh as one pair
    temperature: Positive = 0.2


class EdgePresenceConfig(
    ObjectiveBase, frozen=True, forbid_unknown_fields=True, tag="edge_presence"
):
    """Attention that knows an edge from none, for an encoder with `edge_presence = true` (graphs)."""


class GraphClConfig(ObjectiveBase, frozen=True, forbid_unknown_fields=True, tag="graphcl"):
    """Contrast of two augmented looks at a whole graph with those at other graphs.

    Each look is changed in one way, drawn among those that are above 0."""

    edge_drop: Share = 0.2  # edges that go
    node_drop: Share = 0.2  # nodes that go with all their edges
    subgraph: Share = 0.2  # nodes that go, all but a random walk's
    field_mask: Share = 0.2  # values of the edges' fields that are shown as missing
    temperature: Positive = 0.2
    projection: Annotated[int, Meta(ge=2, le=4096)] = 64  # width of the head's output

    def __post_init__(self) -> None:
        for key in AUGMENTATIONS:
            if getattr(self, key) >= 1:
                raise refuse(
                    f"learner.objective.{key}", 1, "it must be below 1, or nothing is left"
                )
        if not any(getattr(self, key) for key in AUGMENTATIONS):
            raise refuse(
                "learner.objective.edge_drop", 0, f"one of {AUGMENTATIONS} must be above 0"
            )


AUGMENTATIONS = ("edge_drop", "node_drop", "subgraph", "field_mask")

ObjectiveConfig = (
    ColesConfig
    | VicregConfig
    | BagConfig
    | MlemConfig
    | NextInteractionConfig
    | GraceConfig
    | GraphmaeConfig
    | BandanaConfig
    | Node2vecConfig
    | EdgePresenceConfig
    | GraphClConfig
    | ImageObjectives
    | CassleConfig
)

FITTING: dict[Unit, tuple[tuple[type[EncoderConfig], ...], tuple[type[ObjectiveBase], ...]]] = {
    "events": (
        (GruConfig, LinearRecurrenceConfig),
        (ColesConfig, VicregConfig, BagConfig, MlemConfig, CassleConfig),
    ),
    "node": (
        (TemporalAttentionConfig, GraphMixerConfig, GraphMemoryConfig),
        (
            NextInteractionConfig,
            GraceConfig,
            GraphmaeConfig,
            BandanaConfig,
            Node2vecConfig,
            EdgePresenceConfig,
            VicregConfig,
            CassleConfig,
        ),
    ),
    "graph": ((GraphIsomorphismConfig,), (GraphClConfig, CassleConfig)),
    "image": (
        (TimmConfig,),
        (
            VicregConfig,
            BarlowTwinsConfig,
            SimclrConfig,
            WMseConfig,
            ByolConfig,
            MocoV3Config,
            DinoConfig,
            SwavConfig,
            InstanceConfig,
            GmmlConfig,
            SigregConfig,
            SscdConfig,
            CassleConfig,
        ),
    ),
}
"""Encoders and objectives of each unit; the first of either is the default where a stream is not of events."""


Policy: TypeAlias = Literal["stratified", "fifo", "minred", "balanced"]


OF_IMAGES = {"updates_per_record": 0.06, "learning_rate": 2e-3, "replay": {"per_entity": 256}}
"""What `[learner]` has by default where the stream is of images: an image is learnt from several times, a camera's many
frames are kept."""


class ReplayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[learner.replay]`"""

    max_bytes: Annotated[int, Meta(ge=1 << 16)] = 256 << 20
    per_entity: Annotated[int, Meta(ge=1, le=65536)] = 4  # windows of one entity, of different ages
    strata: Annotated[int, Meta(ge=1, le=65536)] = (
        16  # of time, equally likely in the replayed half
    )
    fresh: Share = 0.5  # share of a batch that was not learnt from yet
    policy: Policy = "stratified"  # of images also the others: see image_replay.py
    clusters: Annotated[int, Meta(ge=2, le=65536)] = 256  # of "balanced", the finer ones


class ChallengerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[learner.challenger]`: a second learner from new weights, where the first can learn no more."""

    dormant: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """It begins where this share of units of some kind of layer is dormant; 1: practically never."""
    updates: Count = 500  # until its release is tried


class LearnerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[learner]`; one `[[learner.objective]]` for each objective."""

    enabled: bool = True
    objective: tuple[ObjectiveConfig, ...] = (ColesConfig(), BagConfig())
    batch_entities: Annotated[int, Meta(ge=2)] = 64
    min_entities: Annotated[int, Meta(ge=2)] = 64  # received before the first update
    learning_rate: Positive = 4e-3
    weight_decay: Annotated[float, Meta(ge=0)] = 1e-4
    warmup_updates: Annotated[int, Meta(ge=0)] = 100
    ema_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.995
    max_norm: Positive = 1.0
    seed: int = 0
    updates_per_record: Positive = 0.03
    cpu_share: Annotated[float, Meta(gt=0, le=1)] = (
        0.8  # of one core's time, the monitor's included
    )
    threads: Count = 1
    held_out_share: Annotated[float, Meta(ge=0, le=0.1)] = 0.01
    held_out_entities: Annotated[int, Meta(ge=0)] = 1000  # the share rises to 0.1 to reach them
    queue_bytes: Annotated[int, Meta(ge=1 << 16)] = 64 << 20  # of windows waiting to be received
    watch: bool = True  # embeddings, releases, the encoder itself
    bucket_views: Count = 4  # length buckets a batch is encoded in
    replay: ReplayConfig = ReplayConfig()
    views: ImageViews = ImageViews()  # of images
    challenger: ChallengerConfig = ChallengerConfig()

    def __post_init__(self) -> None:
        if self.enabled and not self.objective:
            raise SettingsError(
                "learner.objective is empty; learning needs at least one. Add a "
                '[[learner.objective]] with name = "coles", or set learner.enabled = false.'
            )
        names = [type(o).__struct_config__.tag for o in self.objective]
        for name in names:
            if names.count(name) > 1:
                raise refuse("learner.objective", f"{name} twice", "name each objective once")
        if names == ["cassle"]:
            needs = (
                "it keeps what is known and learns nothing new: name another objective beside it"
            )
            raise refuse("learner.objective", '"cassle" alone', needs)
        cuts = {
            (o.slices, o.shortest, o.longest) for o in self.objective if isinstance(o, SliceBase)
        }
        if len(cuts) > 1:
            raise refuse(
                "learner.objective.slices",
                "not the same for all",
                "objectives share one set of slices: give slices, shortest and longest alike",
            )

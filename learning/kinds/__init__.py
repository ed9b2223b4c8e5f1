"""Kinds of streams whose entities have windows of their own, by the shape; nodes have learning.graph_learner."""

from learning.config import GraphClConfig, LearnerConfig
from learning.config_base import EncoderBase
from learning.contract import Kind
from learning.kinds.events import Events
from learning.kinds.whole_graphs import WholeGraphs
from schemas.stream import Shape


def build(shape: Shape, encoder: EncoderBase, learner: LearnerConfig) -> Kind:
    """What cuts an entity's windows into views."""
    if not shape.whole:
        return Events(shape, encoder)
    looks = [o for o in learner.objective if isinstance(o, GraphClConfig)]
    return WholeGraphs(encoder, looks[0] if looks else GraphClConfig())

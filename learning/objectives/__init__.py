"""Objectives by the type of their settings. A new one: its file, its config, a line here."""

from learning.config import (
    BagConfig,
    BandanaConfig,
    ColesConfig,
    EdgePresenceConfig,
    EncoderConfig,
    GraceConfig,
    GraphClConfig,
    GraphmaeConfig,
    MlemConfig,
    NextInteractionConfig,
    Node2vecConfig,
    ObjectiveConfig,
    VicregConfig,
)
from learning.config_base import refuse
from learning.contract import Objective
from learning.objectives.bag import Bag
from learning.objectives.bandana import Bandana
from learning.objectives.coles import Coles
from learning.objectives.edge_presence import EdgePresence
from learning.objectives.grace import Grace
from learning.objectives.graphcl import GraphCl
from learning.objectives.graphmae import Graphmae
from learning.objectives.mlem import Mlem
from learning.objectives.next_interaction import NextInteraction
from learning.objectives.node2vec import Node2vec
from learning.objectives.vicreg import Vicreg
from schemas.stream import Shape


def build(  # noqa: C901  # one line for each
    config: ObjectiveConfig, encoder: EncoderConfig, shape: Shape
) -> Objective:
    """A new objective; the weights of its heads come from torch's generator."""
    match config:
        case ColesConfig():
            return Coles(config)
        case VicregConfig():
            return Vicreg(config, encoder.dim)
        case BagConfig():
            return Bag(config, shape, encoder.dim)
        case MlemConfig():
            return Mlem(config, shape, encoder.hidden)
        case NextInteractionConfig():
            return NextInteraction(config)
        case GraceConfig():
            return Grace(config, encoder.dim)
        case GraphmaeConfig():
            return Graphmae(config, shape, encoder.dim)
        case BandanaConfig():
            return Bandana(config, encoder.dim)
        case Node2vecConfig():
            return Node2vec(config)
        case EdgePresenceConfig():
            if not getattr(encoder, "edge_presence", False):
                needs = "the objective edge_presence learns it: it must be true"
                raise refuse("encoder.edge_presence", "false", needs)
            return EdgePresence()
        case GraphClConfig():
            return GraphCl(config, encoder.dim)

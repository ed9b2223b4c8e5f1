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
from learning.config_images import (
    BarlowTwinsConfig,
    ByolConfig,
    CassleConfig,
    DinoConfig,
    GmmlConfig,
    InstanceConfig,
    MocoV3Config,
    SigregConfig,
    SimclrConfig,
    SscdConfig,
    SwavConfig,
    WMseConfig,
)
from learning.contract import Objective
from learning.objectives.bag import Bag
from learning.objectives.bandana import Bandana
from learning.objectives.barlow_twins import BarlowTwins
from learning.objectives.byol import Byol
from learning.objectives.cassle import Cassle
from learning.objectives.coles import Coles
from learning.objectives.dino import Dino
from learning.objectives.edge_presence import EdgePresence
from learning.objectives.gmml import Gmml
from learning.objectives.grace import Grace
from learning.objectives.graphcl import GraphCl
from learning.objectives.graphmae import Graphmae
from learning.objectives.instance import Instance
from learning.objectives.mlem import Mlem
from learning.objectives.moco_v3 import MocoV3
from learning.objectives.next_interaction import NextInteraction
from learning.objectives.node2vec import Node2vec
from learning.objectives.sigreg import Sigreg
from learning.objectives.simclr import Simclr
from learning.objectives.sscd import Sscd
from learning.objectives.swav import Swav
from learning.objectives.vicreg import Vicreg
from learning.objectives.w_mse import WMse
from schemas.stream import Shape


def build(  # noqa: C901  # one line for each
    config: ObjectiveConfig, encoder: EncoderConfig, shape: Shape, tokens: int | None = None
) -> Objective:
    """A new objective; the weights of its heads come from torch's generator.

    tokens: width of the encoder's h_BTD, where that is not `encoder.hidden`."""
    tokens = tokens or encoder.hidden
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
        case BarlowTwinsConfig():
            return BarlowTwins(config, encoder.dim)
        case SimclrConfig():
            return Simclr(config, encoder.dim)
        case WMseConfig():
            return WMse(config, encoder.dim)
        case ByolConfig():
            return Byol(config, encoder.dim)
        case MocoV3Config():
            return MocoV3(config, encoder.dim)
        case DinoConfig():
            return Dino(config, encoder.dim, tokens)
        case SwavConfig():
            return Swav(config, encoder.dim)
        case InstanceConfig():
            return Instance(config, encoder.dim)
        case GmmlConfig():
            return Gmml(config, tokens)
        case SigregConfig():
            return Sigreg(config, encoder.dim)
        case SscdConfig():
            return Sscd(config)
        case CassleConfig():
            return Cassle(config, encoder.dim)

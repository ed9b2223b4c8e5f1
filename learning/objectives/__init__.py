"""Objectives by the type of their settings. A new one: its file, its config, a line here."""

from learning.config import (
    BagConfig,
    ColesConfig,
    EncoderConfig,
    GraphClConfig,
    NextInteractionConfig,
    ObjectiveConfig,
    VicregConfig,
)
from learning.contract import Objective
from learning.objectives.bag import Bag
from learning.objectives.coles import Coles
from learning.objectives.graphcl import GraphCl
from learning.objectives.mlem import Mlem
from learning.objectives.next_interaction import NextInteraction
from learning.objectives.vicreg import Vicreg
from schemas.records import Shape


def build(config: ObjectiveConfig, encoder: EncoderConfig, shape: Shape) -> Objective:
    """A new objective; the weights of its heads come from torch's generator."""
    if isinstance(config, ColesConfig):
        return Coles(config)
    if isinstance(config, VicregConfig):
        return Vicreg(config, encoder.dim)
    if isinstance(config, BagConfig):
        return Bag(config, shape, encoder.dim)
    if isinstance(config, NextInteractionConfig):
        return NextInteraction(config)
    if isinstance(config, GraphClConfig):
        return GraphCl(config, encoder.dim)
    return Mlem(config, shape, encoder.hidden)

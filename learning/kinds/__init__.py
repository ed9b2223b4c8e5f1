"""Kinds of streams whose entities have windows of their own, by the shape; nodes have learning.graph_learner."""

import math

from learning.config import GraphClConfig, LearnerConfig
from learning.config_base import EncoderBase
from learning.contract import Kind, View
from learning.kinds.events import Events, pad, tensors
from learning.kinds.whole_graphs import WholeGraphs
from schemas.records import ImageRows, Windows
from schemas.stream import CHANNELS, Shape


def build(shape: Shape, encoder: EncoderBase, learner: LearnerConfig) -> Kind:
    """What cuts an entity's windows into views."""
    if not shape.whole:
        return Events(shape, encoder)
    looks = [o for o in learner.objective if isinstance(o, GraphClConfig)]
    return WholeGraphs(encoder, looks[0] if looks else GraphClConfig())


def plain(windows: Windows, state: int) -> View:
    """Whole windows as an encoder reads them when it serves, on the CPU: padded rows, or pixels. state: width of
    what recurs in it, which starts at zero."""
    if isinstance(windows.rows, ImageRows):
        return pixels_view(windows)
    return pad(windows, state)


def pixels_view(windows: Windows) -> View:
    """Its "pixels", uint8 [B, S, S, 3], of windows of one image each."""
    rows = windows.rows
    assert isinstance(rows, ImageRows)
    if len(rows) != len(windows):
        raise ValueError(f"{len(windows)} windows have {len(rows)} images; needed is one each.")
    side = math.isqrt(rows.pixels.shape[1] // CHANNELS)
    return tensors({"pixels": rows.pixels.reshape(len(rows), side, side, CHANNELS)})

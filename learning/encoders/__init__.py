"""Encoders by the type of their settings."""

from learning.config import (
    EncoderConfig,
    GraphIsomorphismConfig,
    GraphMemoryConfig,
    GraphMixerConfig,
    GruConfig,
    TemporalAttentionConfig,
)
from learning.config_images import TimmConfig
from learning.encoders.base import Encoder
from learning.encoders.graph_isomorphism import GraphIsomorphismEncoder
from learning.encoders.graph_memory import GraphMemoryEncoder
from learning.encoders.graph_mixer import GraphMixerEncoder
from learning.encoders.gru import GruEncoder
from learning.encoders.linear_recurrence import LinearRecurrenceEncoder
from learning.encoders.temporal_attention import TemporalAttentionEncoder
from schemas.stream import Shape


def build(config: EncoderConfig, shape: Shape) -> Encoder:
    """A new encoder; its weights come from torch's generator."""
    if isinstance(config, TemporalAttentionConfig):
        return TemporalAttentionEncoder(shape, config)
    if isinstance(config, GraphMixerConfig):
        return GraphMixerEncoder(shape, config)
    if isinstance(config, GraphMemoryConfig):
        return GraphMemoryEncoder(shape, config)
    if isinstance(config, GraphIsomorphismConfig):
        return GraphIsomorphismEncoder(shape, config)
    if isinstance(config, GruConfig):
        return GruEncoder(shape, config)
    if isinstance(config, TimmConfig):
        from learning.encoders.image import TimmEncoder  # timm is slow to load

        return TimmEncoder(shape, config)
    return LinearRecurrenceEncoder(shape, config)

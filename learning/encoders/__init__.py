"""Encoders by the type of their settings."""

from learning.config import EncoderConfig, GruConfig
from learning.encoders.base import RecurrentEncoder
from learning.encoders.gru import GruEncoder
from learning.encoders.linear_recurrence import LinearRecurrenceEncoder
from schemas.records import Shape


def build(config: EncoderConfig, shape: Shape) -> RecurrentEncoder:
    """A new encoder; its weights come from torch's generator."""
    if isinstance(config, GruConfig):
        return GruEncoder(shape, config)
    return LinearRecurrenceEncoder(shape, config)

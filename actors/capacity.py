"""How many entities fit: bytes of one, slots of a group under the stream's memory cap."""

from typing import Annotated

import msgspec
from msgspec import Meta

from learning.node_table import ENTRY
from schemas.errors import SettingsError
from schemas.stream import Shape

NAME_BYTES = 200  # an entity's name in the index and in the list of names, roughly


class StateConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[state]`: how much memory all entities of the stream may take before the least recent are evicted."""

    max_memory_mb: Annotated[int, Meta(ge=16)] = 4096
    max_entities: Annotated[int, Meta(ge=1)] | None = None


def entity_bytes(shape: Shape, window: int, hidden: int) -> int:
    """Bytes of one slot's columns."""
    row = shape.row_bytes + shape.graph
    vectors = window if shape.side else 1  # each image has its own
    return window * row + 8 * shape.totals + 4 * hidden * vectors + 8 * 8


def capacity(config: StateConfig, groups: int, shape: Shape, window: int, hidden: int) -> int:
    """Slots of one group under the stream's memory cap. Raises SettingsError where that is too few.

    What nodes have of their own is in every group: each has room for those of all."""
    of_all = groups * (shape.node_bytes + ENTRY) if shape.noded else 0
    each = entity_bytes(shape, window, hidden) + NAME_BYTES + of_all
    slots = (config.max_memory_mb << 20) // groups // each
    if config.max_entities is not None:
        slots = min(slots, -(-config.max_entities // groups))
    if slots < 64:
        raise SettingsError(
            f"state.max_memory_mb is {config.max_memory_mb} and state.max_entities {config.max_entities}: "
            f"room for {slots} entities in each of {groups} partition groups, and at least 64 are needed. "
            "Raise them, or lower encoder.window."
        )
    return slots

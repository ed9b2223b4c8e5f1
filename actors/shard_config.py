"""`[shard]`: settings that need no shard."""

from typing import Annotated

import msgspec
from msgspec import Meta


class ShardConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[shard]`: how many shard processes, and how each spends its time."""

    shards: Annotated[int, Meta(ge=1)] = 1
    max_records: Annotated[int, Meta(ge=1, le=65536)] = 2048
    poll_s: Annotated[float, Meta(gt=0, le=1)] = 0.02
    snapshot_every_s: Annotated[float, Meta(gt=0)] = 60.0
    encode_share: Annotated[float, Meta(gt=0, lt=1)] = 0.3
    """At most this share of a busy shard's time re-encodes entities for a new release."""
    sample_share: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    """At most this share of its time cuts training windows."""
    sample_windows: Annotated[int, Meta(ge=1)] = 64
    """Windows cut from one micro-batch."""
    threads: Annotated[int, Meta(ge=1)] = 1
    seed: int = 0

"""What a release must pass, measured on entities that were never learnt from. Each gate is in the manifest.

A gate that too few entities could judge is left out: a stream of ten entities is served too."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from actors.graphs import some
from schemas.published import Gate
from schemas.records import Windows

if TYPE_CHECKING:
    from torch import Tensor

JUDGED = 1000  # entities at most
LEAST = 32  # ... and at least, for a gate that compares them


class GatesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[release.gates]`: thresholds. `afresh release --force` passes all but parity."""

    rank: Annotated[float, Meta(ge=1)] = 1.2
    """Least effective rank of the vectors: 1 is a collapse onto one direction."""
    spread: Annotated[float, Meta(ge=0, lt=1)] = 0.01
    """Least spread of the vectors: 0 is a collapse onto one point, 1 the whole sphere."""
    recall_loss: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Of how many more entities than with the served release the later half may no longer be found by the earlier."""
    overlap: Annotated[float, Meta(ge=-1, le=1)] = -1.0
    """Least mean cosine with the served release's vectors."""
    overlap_first: Annotated[float, Meta(ge=-1, le=1)] = -1.0
    """... and with those of the generation's first."""


def collapse(config: GatesConfig, vectors: "Tensor") -> list[Gate]:
    """vectors: [B, D]"""
    from learning.quality import effective_rank, spread

    if len(vectors) < LEAST:
        return []
    return [
        _at_least("rank", float(effective_rank(vectors)), config.rank),
        _at_least("spread", float(spread(vectors)), config.spread),
    ]


def self_retrieval(
    config: GatesConfig,
    windows: Windows,
    session_gap_us: int,
    mine: Callable[[Windows], "Tensor"],
    served: Callable[[Windows], "Tensor"] | None,
) -> list[Gate]:
    """Does an entity's later half find its earlier one among all? Both releases judge the same windows.

    mine, served: vectors [B, D] of windows; served: None before the first release."""
    from learning.halves import halves
    from learning.quality import retrieval

    earlier, later = halves(some(windows, JUDGED), session_gap_us)
    if len(earlier) < LEAST:
        return []
    found = retrieval(mine(later), mine(earlier))
    if served is None:
        return [_at_least("retrieval", found, 0.0)]
    before = retrieval(served(later), served(earlier))
    return [_at_least("retrieval", found, before - config.recall_loss)]


def overlap(config: GatesConfig, previous: float | None, first: float | None) -> list[Gate]:
    """Mean cosines, None where there is nothing to compare with."""
    found = [
        ("overlap", previous, config.overlap),
        ("overlap_first", first, config.overlap_first),
    ]
    return [_at_least(name, value, least) for name, value, least in found if value is not None]


def _at_least(name: str, value: float, threshold: float) -> Gate:
    return Gate(name, value, threshold, bool(value >= threshold))


KEYS = {
    "parity": "release.parity",
    "rank": "release.gates.rank",
    "spread": "release.gates.spread",
    "retrieval": "release.gates.recall_loss",
    "overlap": "release.gates.overlap",
    "overlap_first": "release.gates.overlap_first",
}
"""The key that each gate's threshold follows from."""


def reason(gates: tuple[Gate, ...]) -> str:
    """Which gates refuse, in words."""
    return "; ".join(
        f"{g.name} is {g.value:.3g} and must be {g.threshold:.3g} at {'most' if g.name == 'parity' else 'least'} "
        f"({KEYS[g.name]})"
        for g in gates
        if not g.ok
    )

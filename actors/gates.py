"""What a release must pass, measured on entities that were never learnt from. Each gate is in the manifest.

A gate that too few entities could judge is left out: a stream of ten entities is served too."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
from msgspec import Meta

from actors.graphs import some
from schemas.published import Gate
from schemas.records import I64, Windows

if TYPE_CHECKING:
    from torch import Tensor

JUDGED = 1000  # entities at most
FITTED = 4000  # labelled ones, which a probe is fitted on, at most
LEAST = 32  # ... and at least, for a gate that compares them


class GatesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[release.gates]`: thresholds. `afresh release --force` passes all but parity."""

    rank: Annotated[float, Meta(ge=1)] = 1.2
    """Least effective rank of the vectors: 1 is a collapse onto one direction."""
    spread: Annotated[float, Meta(ge=0, lt=1)] = 0.01
    """Least spread of the vectors: 0 is a collapse onto one point, 1 the whole sphere."""
    kept: Annotated[float, Meta(ge=0, le=1)] = 0.33
    """Of the spread, and of the rank above 1, that the served release and the generation's first have on the same
    entities: a collapse is stopped where it begins, not where nothing is left."""
    recall_loss: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Of how many more entities than with the served release the later part may no longer be found by the earlier."""
    probe_loss: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """With labels: of how many more held-out entities they may be foretold wrong than by the served release."""
    overlap: Annotated[float, Meta(ge=-1, le=1)] = -1.0
    """Least mean cosine with the served release's vectors."""
    overlap_first: Annotated[float, Meta(ge=-1, le=1)] = -1.0
    """... and with those of the generation's first."""


def collapse(config: GatesConfig, vectors: "Tensor", before: Sequence["Tensor"] = ()) -> list[Gate]:
    """vectors: [B, D]; before: those of earlier releases, of the same entities.

    A collapse in training soon leaves a spread of 0.05 and then hardly falls: thresholds alone would let it pass."""
    from learning.quality import effective_rank, spread

    if len(vectors) < LEAST:
        return []
    alike = [z for z in before if z.shape[1] == vectors.shape[1]]
    ranks = [float(effective_rank(z)) for z in (vectors, *alike)]
    spreads = [float(spread(z)) for z in (vectors, *before)]
    rank = max([config.rank, *(1.0 + config.kept * (rank - 1.0) for rank in ranks[1:])])
    least = max([config.spread, *(config.kept * each for each in spreads[1:])])
    return [_at_least("rank", ranks[0], rank), _at_least("spread", spreads[0], least)]


def self_retrieval(
    config: GatesConfig,
    windows: Windows,
    session_gap_us: int,
    mine: Callable[[Windows], "Tensor"],
    served: Callable[[Windows], "Tensor"] | None,
) -> list[Gate]:
    """Does an entity's later part find its earlier one among all? Both releases judge the same windows.

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


def probe(
    config: GatesConfig,
    labels: Mapping[int, int],
    windows: tuple[Windows, Windows],
    mine: Callable[[Windows], "Tensor"],
    served: Callable[[Windows], "Tensor"] | None,
) -> list[Gate]:
    """Are labels of held-out entities foretold as well as before, by a probe fitted on others?

    labels: by entity; windows: of entities that are learnt from, and of those held out."""
    from learning.kinds.events import subset
    from learning.probe import Linear

    fitted, judged = (
        subset(w, _labelled(w, labels)[:most])
        for w, most in zip(windows, (FITTED, JUDGED), strict=True)
    )
    known, wanted = (
        np.array([labels[e] for e in w.entity.tolist()], np.int64) for w in (fitted, judged)
    )
    if len(known) < LEAST or len(wanted) < LEAST or len(np.unique(known)) < 2:
        return []

    def accuracy(vectors: Callable[[Windows], "Tensor"]) -> float:
        linear = Linear.fit(vectors(fitted).numpy(), known)
        return float((linear.predict(vectors(judged).numpy()) == wanted).mean())

    least = accuracy(served) - config.probe_loss if served is not None else 0.0
    return [_at_least("probe", accuracy(mine), least)]


def _labelled(windows: Windows, labels: Mapping[int, int]) -> I64:
    return np.array([i for i, e in enumerate(windows.entity.tolist()) if e in labels], np.int64)


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
    "rank": "release.gates.rank, release.gates.kept",
    "spread": "release.gates.spread, release.gates.kept",
    "retrieval": "release.gates.recall_loss",
    "probe": "release.gates.probe_loss",
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

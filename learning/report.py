"""What can be said of an encoder without labels, on windows of entities that it was never trained on."""

from dataclasses import dataclass, field

import numpy as np
import torch

from learning.compatibility import mean_cosine, neighbour_overlap
from learning.encoders.base import Encoder
from learning.kinds.events import subset
from learning.quality import alignment, coding_rate, lidar, modes
from learning.student import embed
from learning.transformations import transformations
from schemas.records import Windows
from schemas.stream import Shape

COMPARED = (64, 512)  # windows, as many as the encoder takes at once within these
VIEWED = (32, 128)  # ... of which each is transformed


@dataclass(frozen=True)
class Report:
    """NaN, and no transformation: there are too few windows."""

    lidar: float = float("nan")
    alignment: float = float("nan")
    coding_rate: float = float("nan")
    modes: float = float("nan")
    stability: float = float("nan")  # common nearest neighbours with the encoder before
    invariance: dict[str, float] = field(default_factory=dict)


def most(encoder: Encoder) -> int:
    """Windows that are worth looking at: of large images fewer."""
    low, high = COMPARED
    return max(low, min(encoder.at_once, high))


@torch.no_grad()
def report(encoder: Encoder, before: Encoder | None, windows: Windows, shape: Shape) -> Report:
    """Of the first `most` windows; `before`: the encoder of the snapshot before."""
    windows = subset(windows, np.arange(min(len(windows), most(encoder))))
    if len(windows) < 2:
        return Report()
    z_BD = embed(encoder, windows).float().cpu()
    stability = float("nan")
    if before is not None:
        stability = neighbour_overlap(z_BD, embed(before, windows).float().cpu())
    low, high = VIEWED
    viewed = subset(
        windows, np.arange(min(len(windows), max(low, min(encoder.at_once // 8, high))))
    )
    rng = np.random.default_rng(0)  # the same for every encoder
    ways = transformations(shape)
    of_each = [embed(encoder, way(viewed, rng)).float().cpu() for way in ways.values()]
    plain = z_BD[: len(viewed)]
    z_BVD = torch.stack([plain, *of_each], 1)
    pairs = [(a, b) for b in range(z_BVD.shape[1]) for a in range(b)]
    apart = [float(alignment(z_BVD[:, a], z_BVD[:, b])) for a, b in pairs]
    return Report(
        lidar=float(lidar(z_BVD)),
        alignment=float(np.mean(apart)),
        coding_rate=float(coding_rate(z_BD)),
        modes=float(modes(z_BD)),
        stability=stability,
        invariance={n: mean_cosine(plain, z) for n, z in zip(ways, of_each, strict=True)},
    )

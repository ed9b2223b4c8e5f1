"""What kinds, encoders and objectives promise each other.

Suffixes of tensors: B entities of a batch, M rows of a view, T time, D dimension of the vector.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from schemas.records import Windows

View: TypeAlias = dict[str, Tensor]
"""One look at a batch, padded: the encoder's inputs, `valid_BT` and `position_BT`."""

Update: TypeAlias = dict[str, Tensor]
"""What an objective wants to change in its buffers, once the step is known to be finite."""


@dataclass(frozen=True, slots=True)
class Batch:
    """views: "slices" (S per entity, side by side), "window", "masked" (of the window),
    "next" (a sequence whose next rows are predicted); of images
    also "small" (K crops per entity, side by side; small_owner_M) and "mixed" (mixed_first_B,
    mixed_second_B, mixed_weight_B). index: entity_B, record_B (one record of
    the stream), time_B (µs), and owner_M, the entity 0..B-1 of each slice. pairs: positives as
    two rows of "slices". now_us: stream time. What graphs have beside these: see kinds/graph.py."""

    views: dict[str, View]
    index: dict[str, Tensor]
    pairs: dict[str, Tensor]
    now_us: int


class Output(NamedTuple):
    """z_BD has unit length; h_BTD is what the encoder knows after each row; extra: `state`, and
    `log_variance` where the encoder has it."""

    z_BD: Tensor  # noqa: N815
    h_BTD: Tensor  # noqa: N815
    extra: dict[str, Tensor]


class Needs(NamedTuple):
    """What an objective asks of a batch; the learner draws and cuts only what somebody needs."""

    slices: int = 0
    shortest: float = 0.2
    longest: float = 0.8
    window: bool = False
    following: bool = False  # "next"
    masked: float = 0.0  # share of rows (of a graph: of nodes) hidden in "masked"
    teacher: bool = False
    variance: bool = False  # log_variance from the encoder
    rows: bool = False  # reads h_BTD; if nobody does, it comes without rows
    # Of graphs:
    edges: bool = False  # examples of edges, each as of the moment before it
    hidden: float = 0.0  # share of the nodes' features hidden in "slices"
    bandwidth: float = 0.0  # temperature of the bandwidths in "bandwidth"
    walk: int = 1  # nodes are drawn by walks of so many,
    returns: float = 1.0  # p of node2vec,
    onward: float = 1.0  # and its q
    others: int = 0  # nodes beside them, by their degree
    # Of images:
    small: int = 0  # small crops per image, in "small"
    patches: float = 0.0  # share of the patches hidden in "masked", which are the looks of "slices"
    mixed: bool = False  # "mixed": looks mixed of two images each
    # Of any kind:
    previous: bool = (
        False  # the teacher is the encoder of the last release; None before there is one
    )

    @property
    def nodes(self) -> bool:
        """Of a graph: nodes as they are now."""
        return bool(self.slices or self.window or self.masked or self.bandwidth)

    @classmethod
    def all_of(cls, needs: Iterable["Needs"]) -> "Needs":
        """Everything that any of them asks for."""
        every = list(needs)
        cut = max(every, key=lambda n: n.slices, default=cls())
        way = max(every, key=lambda n: n.walk, default=cls())
        return cls(
            slices=cut.slices,
            shortest=cut.shortest,
            longest=cut.longest,
            window=any(n.window for n in every),
            following=any(n.following for n in every),
            masked=max((n.masked for n in every), default=0.0),
            teacher=any(n.teacher for n in every),
            variance=any(n.variance for n in every),
            rows=any(n.rows or n.following or n.masked or n.patches for n in every),
            edges=any(n.edges for n in every),
            hidden=max((n.hidden for n in every), default=0.0),
            bandwidth=max((n.bandwidth for n in every), default=0.0),
            walk=way.walk,
            returns=way.returns,
            onward=way.onward,
            others=max((n.others for n in every), default=0),
            small=max((n.small for n in every), default=0),
            patches=max((n.patches for n in every), default=0.0),
            mixed=any(n.mixed for n in every),
            previous=any(n.previous for n in every),
        )


class Encode(Protocol):
    """Student or teacher, as an objective sees it: the same view twice is computed once."""

    def __call__(self, view: View, /) -> Output: ...
    def score(self, source: View, target: View, pair: View) -> Tensor:
        """Logits [P] of pairs of nodes, where the encoder is one of graphs."""


class Kind(Protocol):
    """Columns -> views; all randomness comes from the generator given."""

    def views(
        self, windows: Windows, needs: Needs, rng: np.random.Generator, *, augment: bool
    ) -> Batch: ...


class Objective(nn.Module):
    """A loss with what it owns: heads are parameters; banks and prototypes are buffers.

    `forward` changes nothing but gradients; buffers move in `apply`, after the finite check."""

    needs: Needs = Needs()

    def forward(self, student: Encode, teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        """The mean loss (a scalar), and what `apply` shall do."""
        raise NotImplementedError

    @torch.no_grad()
    def apply_update(self, update: Update) -> None:
        """Moves the buffers; nn.Module has an `apply` of its own."""

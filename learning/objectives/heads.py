"""What objectives with heads share: projectors, what a teacher has of them, and float32. All of it is thrown
away at release."""

import copy
import functools
import itertools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.contract import Batch

P = ParamSpec("P")
R = TypeVar("R")

NEVER = -1e9
"""A logit that has no part in a softmax. Not -inf: a row of those has a slope that is no number."""


def float32(loss: Callable[P, R]) -> Callable[P, R]:
    """Its tensors come as float32 and its products stay so, whatever autocast says around it."""

    @functools.wraps(loss)
    def exact(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [a for a in args if isinstance(a, Tensor)]
        wide = (a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
        with torch.autocast(tensors[0].device.type, enabled=False):
            return loss(*wide, **kwargs)  # type: ignore[arg-type]

    return exact


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with LayerNorm and ReLU between them.

    LayerNorm stands where the papers have BatchNorm: in a stream its statistics would drift, and one image's
    vector would hang on the others in its batch. BYOL, too, learns without those: arXiv:2010.10241."""
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        if layers:
            layers += [nn.LayerNorm(inner), nn.ReLU()]
        layers.append(nn.Linear(inner, outer))
    return nn.Sequential(*layers)


class Projector(nn.Module):
    """z_MD of unit length -> y_MP. It sees vectors of length √D, whose entries are of size 1."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.length = widths[0] ** 0.5
        self.layers = mlp(*widths)

    def forward(self, z_MD: Tensor) -> Tensor:
        y_MP: Tensor = self.layers(z_MD * self.length)
        return y_MP.float()


@float32
def cosines(x_MD: Tensor, y_KD: Tensor) -> Tensor:
    """[M, K]"""
    return F.normalize(x_MD, dim=1) @ F.normalize(y_KD, dim=1).T


class Prototypes(nn.Module):
    """Cosines [M, K] of vectors [M, D] with K learnt directions."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))

    def forward(self, y_MD: Tensor) -> Tensor:
        return cosines(y_MD, self.directions)


class Averaged(nn.Module):
    """A head as the teacher has it: a copy without gradients, which `follow` moves, in `apply_update` alone."""

    def __init__(self, head: nn.Module, momentum: float) -> None:
        super().__init__()
        self.head = copy.deepcopy(head).requires_grad_(requires_grad=False)
        self.momentum = momentum

    @torch.no_grad()
    def forward(self, z_MD: Tensor) -> Tensor:
        y_MP: Tensor = self.head(z_MD)
        return y_MP

    @torch.no_grad()
    def follow(self, head: nn.Module) -> None:
        theirs: list[Tensor] = list(self.head.parameters())
        ours: list[Tensor] = list(head.parameters())
        torch._foreach_lerp_(theirs, ours, 1.0 - self.momentum)


def by_look(y_MD: Tensor, batch: Batch) -> Tensor:
    """[B, V, D]: views are entity-major."""
    return y_MD.reshape(len(batch.index["entity_B"]), -1, y_MD.shape[1])

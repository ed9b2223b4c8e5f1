"""Can it still learn? Units that are dormant, how large the weights are, how far an update moves them.

Sources: dormant neurons, Sokar et al. 2023, arXiv:2302.12902; weight norm and rank as signs of lost plasticity, Dohare
et al. 2023, arXiv:2306.13812."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from learning.encoders.base import Encoder
from learning.kinds import plain
from learning.kinds.events import subset
from learning.student import moved
from schemas.records import Windows

DORMANT = 0.025  # of the mean activation of a layer's units: at or below it a unit is dormant
WINDOWS = 64
KINDS = ("relu", "gelu", "silu", "tanh", "gru")
AXES = {"conv2d": 1, "linear": -1}  # where the units are of what is made by it


class _Seen(TorchFunctionMode):
    """Mean absolute activation of every unit of every layer that an encoder goes through, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[Tensor]] = {}
        self._axis = -1

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").rstrip("_")
        self._axis = AXES.get(name, self._axis)
        if name in KINDS:
            h = out[0] if name == "gru" else out
            axis = self._axis if h.ndim == 4 else -1
            self.found.setdefault(name, []).append(
                h.float().abs().movedim(axis, 0).flatten(1).mean(1)
            )
        return out


@torch.no_grad()
def dormant(encoder: Encoder, windows: Windows) -> dict[str, float]:
    """Share of dormant units by kind of layer, of those that the encoder has."""
    windows = subset(windows, np.arange(min(len(windows), WINDOWS)))
    if not len(windows):
        return {}
    training = encoder.training
    encoder.eval()
    view = moved(plain(windows, encoder.config.state), encoder.out.weight.device)
    with _Seen() as seen:
        encoder(encoder.prepared(view))
    encoder.train(training)
    of_kind = {}
    for kind, layers in seen.found.items():
        sleeps = torch.cat([h <= DORMANT * h.mean() for h in layers])
        of_kind[kind] = float(sleeps.float().mean())
    return of_kind


def norm(tensors: Iterable[Tensor]) -> float:
    """Of all of them together."""
    each = torch._foreach_norm([t.detach() for t in tensors])
    return float(torch.stack([n.float() for n in each]).norm())


class Step:
    """How far one update moves a module's weights, in their own norm."""

    def __init__(self, module: nn.Module) -> None:
        self._now = list(module.parameters())
        self._before = [p.detach().clone() for p in self._now]
        self.norm = norm(self._before)

    def ratio(self) -> float:
        """After it."""
        moved_by = torch._foreach_sub([p.detach() for p in self._now], self._before)
        return norm(moved_by) / max(self.norm, 1e-12)

"""An encoder as objectives see it: each view is encoded once, in buckets of like length."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learning.contract import Output, View
from learning.encoders.base import Encoder
from learning.kinds import plain
from learning.kinds.events import subset
from schemas.records import Windows
from schemas.stream import NODE_VIEW

BY_ENTITY = frozenset({"state", "totals", *NODE_VIEW})  # of a view, whatever their width
WHOLE = "described"  # what rows of a view point into
LEAST = 32  # rows of a view that are worth a bucket of their own


def moved(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: t.to(device, non_blocking=True) for name, t in tensors.items()}


class Student:
    """Callable on views; for one step. `rows`: h_BTD is wanted. `frozen`: without gradients."""

    def __init__(
        self, encoder: Encoder, buckets: int, *, rows: bool = True, frozen: bool = False
    ) -> None:
        self._encoder = encoder
        self._buckets = buckets
        self._rows = rows
        self._frozen = frozen
        self._done: dict[int, tuple[View, Output]] = {}

    def __call__(self, view: View) -> Output:
        if id(view) not in self._done:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
                self._done[id(view)] = view, self._encode(view)
        return self._done[id(view)][1]

    def done(self, view: View) -> Output | None:
        """What was made of the view; None: it was not asked for."""
        done = self._done.get(id(view))
        return done and done[1]

    def score(self, source: View, target: View, pair: View) -> Tensor:
        """Of an encoder of graphs: logits of pairs."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            return self._encoder.score(source, target, pair)

    def _encode(self, view: View) -> Output:
        """Padding costs as much as rows do: short pieces are encoded beside short ones."""
        if "time_us" not in view:  # images are all alike
            return self._encoder(view)  # type: ignore[no-any-return]
        size, longest = view["time_us"].shape
        view = self._encoder.prepared(view)
        count = min(self._buckets, size // LEAST)
        if count < 2 or longest == 1:
            return self._encoder(view)  # type: ignore[no-any-return]
        order = torch.argsort(view["length"], stable=True)
        back = torch.argsort(order)
        parts = [self._encoder(_trimmed(view, at)) for at in torch.chunk(order, count)]
        h_BTD = None if self._rows else parts[0].h_BTD.new_empty(size, 0, 0)
        if h_BTD is None:
            padded = [F.pad(p.h_BTD, (0, 0, 0, longest - p.h_BTD.shape[1])) for p in parts]
            h_BTD = torch.cat(padded)[back]
        extra = {name: torch.cat([p.extra[name] for p in parts])[back] for name in parts[0].extra}
        z_BD = torch.cat([p.z_BD for p in parts])[back]
        return Output(z_BD, h_BTD, extra)


def _trimmed(view: View, at: Tensor) -> View:
    """Some pieces, without the columns that all of them only pad."""
    longest = max(int(view["length"][at].max()), 1)  # a node without edges has no row
    width = view["time_us"].shape[1]
    out = {}
    for name, t in view.items():
        if name == WHOLE:
            out[name] = t
            continue
        by_row = t.ndim > 1 and t.shape[1] == width and name not in BY_ENTITY
        out[name] = (t[:, :longest] if by_row else t)[at]
    return out


@torch.no_grad()
def embed(encoder: Encoder, windows: Windows, batch: int = 0) -> Tensor:
    """Vectors of whole windows, [B, D], in the order of the windows; batch: 0 is what the encoder says."""
    training, batch = encoder.training, batch or encoder.at_once
    encoder.eval()
    device = encoder.out.weight.device
    parts = []
    for start in range(0, len(windows), batch):
        part = subset(windows, np.arange(start, min(start + batch, len(windows))))
        view = moved(plain(part, encoder.config.state), device)
        parts.append(Student(encoder, 8, rows=False, frozen=True)(view).z_BD)
    encoder.train(training)
    return torch.cat(parts) if parts else torch.empty(0, encoder.config.dim, device=device)

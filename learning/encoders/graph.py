"""What encoders of nodes share: a node's recent edges as tokens, what the nodes have of their own, pairs.

Padded neighbours and a mask, no scatter: exact in ONNX Runtime. Shapes: B nodes, T edges of a node, n hidden."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.config import GraphBase
from learning.contract import Output, View
from learning.encoders.base import FieldEncoder
from learning.encoders.fields import LEAST_SCALE, Fields, symlog
from learning.encoders.pair_scorer import PairScorer, repeats, seconds, there
from schemas.stream import NEIGHBOUR, Shape

FREQUENCIES = 16  # of the encoding of time, from 1 rad/s down to one in about a year
SLOWEST = 4e7  # seconds per radian
STRUCTURE = 4


class NodeFields(nn.Module):
    """What a node has of its own -> [..., n]: numbers normalised, hashed categories by embedding, one linear layer."""

    mean: Tensor
    scale: Tensor
    first_row: Tensor

    def __init__(self, shape: Shape, config: GraphBase) -> None:
        super().__init__()
        self.buckets = 1 << config.bucket_bits
        self.numbers, self.categories = shape.node_numbers, shape.node_categories
        width = 2 * self.numbers + self.categories * config.category_dim
        if self.categories:
            rows = self.buckets + 1  # and "missing"
            self.embedding = nn.Embedding(self.categories * rows, config.category_dim)
            nn.init.normal_(self.embedding.weight, std=0.5)
            first = torch.arange(self.categories) * rows
            self.register_buffer("first_row", first, persistent=False)
        if self.numbers:
            self.register_buffer("mean", torch.zeros(self.numbers))
            self.register_buffer("scale", torch.ones(self.numbers))
        self.project = nn.Linear(width, config.hidden)

    def forward(self, numbers: Tensor, categories: Tensor | None, missing: Tensor | None) -> Tensor:
        projected: Tensor = self.project(self.features(numbers, categories, missing))
        return projected

    def of_table(
        self,
        numbers: Tensor,
        categories: Tensor,
        missing: Tensor,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """`forward` of a table [F + 1, ...] whose last row is of nothing known: [S·F + 1, n], once for each row of
        `hidden` [S, Nn + Nc], the fields that it does without. Not for export."""
        blank = self(numbers[-1:], categories[-1:], missing[-1:])
        numbers, categories, missing = numbers[:-1], categories[:-1], missing[:-1]
        if hidden is None:
            hidden = torch.zeros(1, self.numbers + self.categories, dtype=torch.bool)
        if not self.categories and not bool(torch.isnan(numbers).any()):
            return torch.cat([*self._complete(numbers, hidden), blank])
        parts = []
        for gone in hidden.to(numbers.device):
            left = numbers.masked_fill(gone[: self.numbers], torch.nan)
            parts.append(self(left, categories, missing | gone[self.numbers :]))
        return torch.cat([*parts, blank])

    def _complete(self, numbers: Tensor, hidden: Tensor) -> list[Tensor]:
        """Where no number is missing: columns that are hidden in all rows need not be multiplied."""
        x = (symlog(numbers) - self.mean) / self.scale
        weight, indicator = torch.split(self.project.weight, self.numbers, 1)
        parts = []
        for gone in hidden.to(numbers.device):
            kept, lost = torch.nonzero(~gone).squeeze(1), torch.nonzero(gone).squeeze(1)
            offset = self.project.bias + indicator.index_select(1, lost).sum(1)
            parts.append(F.linear(x.index_select(1, kept), weight.index_select(1, kept), offset))
        return parts

    def features(
        self, numbers: Tensor | None, categories: Tensor | None, missing: Tensor | None
    ) -> Tensor:
        """What the linear layer reads: normalised numbers, which are missing, embedded categories."""
        parts = []
        if numbers is not None and self.numbers:
            gone = torch.isnan(numbers)
            x = (symlog(torch.nan_to_num(numbers)) - self.mean) / self.scale
            parts += [torch.where(gone, torch.zeros_like(x), x), gone.to(torch.float32)]
        if categories is not None and missing is not None and self.categories:
            bucket = torch.bitwise_and(categories, self.buckets - 1) + self.first_row
            at = torch.where(missing, self.first_row + self.buckets, bucket)
            parts.append(self.embedding(at).flatten(-2))
        return torch.cat(parts, -1)

    @torch.no_grad()
    def renormalise(self, numbers: Tensor, *, fold: bool = True) -> None:
        """Mean and scale of these nodes' numbers [N, Nn]. With `fold` the change goes into the linear layer and
        the function stays; without, at the start, numbers reach the layer as large as it was made for."""
        if not self.numbers or not len(numbers):
            return
        known = torch.logical_not(torch.isnan(numbers))
        y = symlog(torch.nan_to_num(numbers).double())
        n = known.sum(0).clamp(min=1)
        mean = (y * known).sum(0) / n
        scale = (((y - mean).square() * known).sum(0) / n).sqrt().clamp(min=LEAST_SCALE)
        mean, scale = mean.float().to(self.mean.device), scale.float().to(self.mean.device)
        if fold:
            self._fold(mean, scale)
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def _fold(self, mean: Tensor, scale: Tensor) -> None:
        weight = self.project.weight
        shift = weight[:, : self.numbers] * ((mean - self.mean) / self.scale)
        self.project.bias.add_(shift.sum(1))
        # A missing number is 0 after the normaliser, whatever its mean: its indicator pays.
        weight[:, self.numbers : 2 * self.numbers] -= shift
        weight[:, : self.numbers] *= scale / self.scale


class GraphEncoder(FieldEncoder):
    """Edges and nodes in, a vector of unit length out; `readout` is what encoders of nodes differ in.

    A node without edges or features has a vector too, the same for all. `pairs` scores two nodes: see PairScorer."""

    graphs: tuple[str, ...] = ("encode", "score")
    reads: type[Fields] = Fields
    structured = True  # a token knows where it stands among the node's other edges
    config: GraphBase
    frequencies: Tensor

    def __init__(self, shape: Shape, config: GraphBase, width: int) -> None:
        """width: of what `readout` returns."""
        super().__init__(shape, config)
        n = config.hidden
        hidden_ids = 0 if config.neighbour_ids else 1
        self.own_categories = slice(hidden_ids, None)
        own = Shape(shape.numbers, shape.categories - hidden_ids, shape.session_gap_us)
        self.fields = self.reads(own, config)
        if self.structured:
            self.structure = nn.Linear(STRUCTURE + FREQUENCIES, n)
        if shape.noded:
            self.node = NodeFields(shape, config)
        self._end(width)
        self.pairs = PairScorer(config.pair_hidden, config.window)
        slow = torch.linspace(0.0, math.log(SLOWEST), FREQUENCIES, dtype=torch.float64)
        self.register_buffer("frequencies", torch.exp(-slow), persistent=False)

    def readout(self, view: View, x_BTD: Tensor, valid_BT: Tensor, own_BD: Tensor) -> Tensor:
        """[B, width] of a node's edges x_BTD (zero where padded) and of its own features own_BD."""
        raise NotImplementedError

    def forward(self, view: View) -> Output:
        """Of the edges only those before `length` count. [B, T] -> z_BD; h_BTD: the edges as tokens.

        In training a view may weigh its edges by `bandwidth_BT`."""
        view, valid_BT = self.prepared(view), there(view)
        x_BTD = self.edges(view, valid_BT)
        if "bandwidth_BT" in view:
            x_BTD = x_BTD * view["bandwidth_BT"].unsqueeze(-1)
        own_BD = self.own_features(view)
        joined = self.readout(view, x_BTD, valid_BT, own_BD)
        extra = {"joined": joined} if self.training else {}
        if not torch.compiler.is_exporting():
            extra |= self.beside(view, x_BTD, valid_BT, own_BD)
        return self._output(joined, x_BTD, extra)

    def beside(self, view: View, x_BTD: Tensor, valid_BT: Tensor, own_BD: Tensor) -> View:
        """More of the `extra` that objectives read, of the same tensors as `readout`'s; no release has it."""
        del view, x_BTD, valid_BT, own_BD
        return {}

    def edges(self, view: View, valid_BT: Tensor) -> Tensor:
        """What `readout` reads of the edges, [B, T, n]."""
        return torch.relu(self.tokens(view)) * valid_BT.unsqueeze(-1)

    def tokens(self, view: View) -> Tensor:
        """Each edge: its fields, where it stands among the others, and what its far node has. [B, T, n]"""
        x_BTD: Tensor = self.fields(self.own(view))
        if self.structured:
            x_BTD = x_BTD + self.structure(self._structure(view))
        return x_BTD + self._node(view, "far") if self.shape.noded else x_BTD

    def own_features(self, view: View) -> Tensor:
        """What the node has of its own [B, n]; nothing [B, 0] where the stream says nothing of nodes."""
        if self.shape.noded:
            return torch.relu(self._node(view, "node"))
        return torch.zeros(view["length"].shape[0], 0, device=view["length"].device)

    def prepared(self, view: View) -> View:
        """In training rows may point (`node_at`, `far_at`) into a table of distinct nodes: each is read once."""
        if "table_numbers" not in view:
            return view
        table = {name.removeprefix("table_"): t for name, t in view.items() if "table_" in name}
        rest = {name: t for name, t in view.items() if "table_" not in name}
        return {**rest, "described": self.node.of_table(**table)}

    def _node(self, view: View, prefix: str) -> Tensor:
        if "described" in view:
            return F.embedding(view[f"{prefix}_at"], view["described"])
        columns = (f"{prefix}_{name}" for name in ("numbers", "categories", "missing"))
        found: Tensor = self.node(*(view.get(name) for name in columns))
        return found

    def own(self, view: View) -> View:
        """The view as `fields` reads it: a window that begins with its first edge."""
        b, first = view["length"].shape[0], view["time_us"][:, 0]  # not len: it would be frozen
        totals = torch.zeros(b, self.shape.totals, dtype=torch.float64, device=first.device)
        some: View = {
            name: view[name][:, :, self.own_categories]
            for name in ("categories", "missing", "unknown")
            if name in view
        }
        return {**view, "previous_us": first, "first_us": first, "totals": totals, **some}

    def _structure(self, view: View) -> Tensor:
        """Repeats of the neighbour, whether it comes again later, rank and age before the newest edge."""
        valid = there(view)
        same, later = repeats(view["categories"][:, :, NEIGHBOUR], valid)
        at = torch.clamp(view["length"] - 1, min=0).unsqueeze(1)
        age = seconds(torch.gather(view["time_us"], 1, at) - view["time_us"])
        rank = torch.clamp(at + 1 - valid.to(torch.int64).cumsum(1), min=0).to(torch.float32)
        parts = [torch.log1p(same), (later > 0).to(torch.float32), torch.log1p(rank)]
        scalars = torch.stack([*parts, torch.log1p(age) / 8 - 1], -1)
        angle = age.to(torch.float64).unsqueeze(-1) * self.frequencies
        return torch.cat([scalars, torch.cos(angle).to(torch.float32)], -1)

    def score(self, source: View, target: View, pair: View) -> Tensor:
        """Logits [P] of the next edge of `source` leading to `target`: see PairScorer."""
        logits: Tensor = self.pairs(source, target, pair)
        return logits


def newest_and_mean(view: View, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """The newest token and the mean of all; zeros where there are none. [B, n] each"""
    count = torch.clamp(view["length"], min=1).unsqueeze(1)
    at = (count - 1).unsqueeze(-1).expand(-1, 1, x_BTD.shape[2])
    return torch.gather(x_BTD, 1, at).squeeze(1), x_BTD.sum(1) / count

"""A whole graph from its edges: rounds of message passing between nodes, each node counted once in the end.

Source: GIN, Xu et al. 2019, arXiv:1810.00826, with the readout of all rounds (jumping knowledge); messages
carry the edge's fields as in GINE, Hu et al. 2020, arXiv:1905.12265. LayerNorm stands where the paper has
BatchNorm. Every end of an edge is a token, and tokens of equal hash are one node: sums over a node are a matrix
product with that equality, no scatter, exact in ONNX Runtime. Hashes say who is who and nothing else.

Shapes: B graphs, T edges of a window, N = 2·T tokens (all sources, then all neighbours), H hidden."""

import torch
from torch import Tensor, nn

from learning.config import GraphIsomorphismConfig
from learning.contract import Output, View
from learning.encoders.base import FieldEncoder
from learning.encoders.fields import Fields
from learning.encoders.pair_scorer import there
from schemas.stream import ENDS, Shape


class EdgeFields(Fields):
    """What an edge is like: its fields, and how many edges of the graph join its two nodes. No times, so that the
    order in which edges came is no input."""

    cyclic = 0

    @staticmethod
    def scalar_count(shape: Shape) -> int:
        return shape.numbers + 1

    def scalars(self, view: View) -> Tensor:
        """[symlog numbers | log of parallel edges], [B, T, Fn + 1]."""
        parallel = torch.log(torch.clamp(_parallel(view), min=1.0)).unsqueeze(-1)
        if not self.shape.numbers:
            return parallel
        return torch.cat([self._numbers(view), parallel], -1)


class GraphIsomorphismEncoder(FieldEncoder):
    """Degrees and edges -> `rounds` rounds -> a vector of unit length. A graph without edges has one too."""

    graphs = ("encode",)
    own_categories = slice(ENDS.stop, None)

    def __init__(self, shape: Shape, config: GraphIsomorphismConfig) -> None:
        super().__init__(shape, config)
        n = config.hidden
        own = Shape(shape.numbers, shape.categories - ENDS.stop, shape.session_gap_us)
        self.fields: Fields = EdgeFields(own, config)
        self.start = nn.Linear(1, n)
        if config.directed:
            self.toward = nn.Parameter(torch.randn(n) * 0.5)
        self.own_share = nn.Parameter(torch.zeros(config.rounds))  # epsilon of the paper
        self.rounds = nn.ModuleList(_perceptron(n) for _ in range(config.rounds))
        self._end(n * (config.rounds + 1))

    def forward(self, view: View) -> Output:
        """Of the edges only those before `length` count. [B, T] -> z_BD; h_BTD: what an edge's message carries."""
        edge_BTH = self.fields.project(self.fields.features(self.own(view)))
        carried_BNH = torch.cat(self._either_way(edge_BTH), 1)
        same_BNN = _same(view)
        degree_BN1 = same_BNN.sum(2, keepdim=True)
        once_B1N = (degree_BN1 > 0).to(torch.float32) / torch.clamp(degree_BN1, min=1.0)
        once_B1N = once_B1N.transpose(1, 2)
        h_BNH = torch.relu(self.start(torch.log1p(degree_BN1)))
        read = [once_B1N @ h_BNH]
        for own_share, update in zip(self.own_share, self.rounds, strict=True):
            near, far = torch.chunk(h_BNH, 2, 1)
            told_BNH = torch.relu(torch.cat([far, near], 1) + carried_BNH)
            h_BNH = update((1.0 + own_share) * h_BNH + same_BNN @ told_BNH)
            read.append(once_B1N @ h_BNH)
        joined = torch.cat(read, 2).squeeze(1)
        return self._output(joined, edge_BTH, {})

    def _either_way(self, edge_BTH: Tensor) -> list[Tensor]:
        """What edges carry to their sources, and to their neighbours."""
        if not hasattr(self, "toward"):
            return [edge_BTH, edge_BTH]
        return [edge_BTH - self.toward, edge_BTH + self.toward]

    def own(self, view: View) -> View:
        """The view with its whole `categories`, by which `fields` finds parallel edges, beside its own."""
        some = ("categories", "missing", "unknown")
        mine = {name: view[name][:, :, self.own_categories] for name in some if name in view}
        return {**view, **mine, "ends": view["categories"][:, :, ENDS]}


def _same(view: View) -> Tensor:
    """[B, N, N] float: whether two tokens are of one node. Rows of padding are zeros."""
    ends = _ends(view)
    ids_BN = torch.cat([ends[:, :, 0], ends[:, :, 1]], 1)
    valid = there(view)
    valid_BN = torch.cat([valid, valid], 1)
    same = ids_BN.unsqueeze(2) == ids_BN.unsqueeze(1)
    both = torch.logical_and(valid_BN.unsqueeze(2), valid_BN.unsqueeze(1))
    return torch.logical_and(same, both).to(torch.float32)


def _parallel(view: View) -> Tensor:
    """[B, T] how many edges join the two nodes of each, itself included."""
    ends, valid = _ends(view), there(view)
    one, other = ends.unsqueeze(2), ends.unsqueeze(1)
    along, against = one == other, one == torch.flip(other, [3])
    same = torch.logical_or(along[..., 0] & along[..., 1], against[..., 0] & against[..., 1])
    return torch.logical_and(same, valid.unsqueeze(1)).to(torch.float32).sum(2)


def _ends(view: View) -> Tensor:
    return view["ends"] if "ends" in view else view["categories"][:, :, ENDS]


def _perceptron(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    )

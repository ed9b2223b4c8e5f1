"""A memory of each node: a GRU over its edges, one step an edge.

Source: TGN, Rossi et al. 2020, arXiv:2006.10637, in its variant with a GRU, raw messages and the identity as
embedding. What differs: the message holds the edge's fields, its direction, log Δt and what the far node has of its
own, not the far node's memory, which would make a vector depend on how two groups' topics interleave
(docs/decisions/0015); and a memory begins anew by the anchor rule, so that a vector is a function of some K edges.

In training a view has one row, the newest edge, beside `memory` [B, n], the state before it, and `before_us` [B],
the time of the edge before that: see learning/memory.py. A release holds `encode`, of the window from a zero
state, and `score`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.config import GraphMemoryConfig
from learning.contract import View
from learning.encoders.fields import Fields
from learning.encoders.fused_gru import stepped
from learning.encoders.graph import GraphEncoder
from schemas.stream import Shape


class StepFields(Fields):
    """What an edge is like and how long after the node's edge before it: all that one step can know."""

    @staticmethod
    def scalar_count(shape: Shape) -> int:
        return shape.numbers + 1

    def scalars(self, view: View) -> Tensor:
        """[symlog numbers | log Δt], [B, T, Fn + 1]."""
        time_us = view["time_us"]
        before = torch.cat([view["previous_us"].unsqueeze(1), time_us[:, :-1]], 1)
        gap = torch.clamp((time_us - before).to(torch.float64) * 1e-6, min=0.0)
        log = torch.log(1.0 + gap).to(torch.float32).unsqueeze(-1)
        return torch.cat([self._numbers(view), log], -1) if self.shape.numbers else log


class GraphMemoryEncoder(GraphEncoder):
    """The state after the newest edge, beside the node itself. Without edges the state is zero."""

    reads = StepFields
    structured = False

    def __init__(self, shape: Shape, config: GraphMemoryConfig) -> None:
        n = config.hidden
        super().__init__(shape, config, (2 if shape.noded else 1) * n)
        self.gru = nn.GRU(n, n, batch_first=True)

    def own(self, view: View) -> View:
        own = super().own(view)
        return {**own, "previous_us": view["before_us"]} if "before_us" in view else own

    def edges(self, view: View, valid_BT: Tensor) -> Tensor:  # noqa: ARG002
        """No mask: what is padded lies behind, and is not read."""
        if self._one_step(view):
            return self.inputs(view)
        return self.tokens(view)

    def _one_step(self, view: View) -> bool:
        return "memory" in view and view["memory"].device.type == "cpu"

    def readout(self, view: View, x_BTD: Tensor, valid_BT: Tensor, own_BD: Tensor) -> Tensor:  # noqa: ARG002
        if self._one_step(view):
            gates = F.linear(x_BTD[:, 0], *self.into_gates())
            _, weight, _, bias = self.weights()
            h_BD = stepped(gates, view["memory"], weight, bias)
        elif "memory" in view:
            h_BD = torch.gru_cell(x_BTD[:, 0], view["memory"], *self.weights())
        else:
            h_BTD, _ = self.gru(x_BTD)
            at = torch.clamp(view["length"] - 1, min=0).reshape(-1, 1, 1)
            h_BD = torch.gather(h_BTD, 1, at.expand(-1, 1, h_BTD.shape[2])).squeeze(1)
        return torch.cat([h_BD * (view["length"] > 0).unsqueeze(1), own_BD], -1)

    def weights(self) -> list[Tensor]:
        """Of the GRU: of inputs [3n, n], of the state [3n, n], and the biases of both."""
        return list(self.gru.all_weights[0])

    def inputs(self, view: View) -> Tensor:
        """What is read of the edges before the last linear map to the GRU's gates, [B, T, F]: see `into_gates`."""
        return self.tokens(view) if self.shape.noded else self.fields.features(self.own(view))

    def into_gates(self) -> tuple[Tensor, Tensor]:
        """Weight [3n, F] and bias of that map. Two in a row are one, which is less to do where F is small."""
        into, _, bias, _ = self.weights()
        if self.shape.noded:
            return into, bias
        before = self.fields.project
        return into @ before.weight, torch.addmv(bias, into, before.bias)

"""Gated recurrent units over an entity's records.

Source: Cho et al. 2014, arXiv:1406.1078."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from learning.config import GruConfig
from learning.encoders.base import RecurrentEncoder
from learning.encoders.fused_gru import fused_gru
from schemas.stream import Shape


class GruEncoder(RecurrentEncoder):
    """One nn.GRU per layer, so that every layer's state at every row is at hand."""

    folds = True

    def __init__(self, shape: Shape, config: GruConfig) -> None:
        super().__init__(shape, config)
        n = config.hidden
        self.layers = nn.ModuleList(nn.GRU(n, n, batch_first=True) for _ in range(config.layers))

    def recur(self, x_BTD: Tensor, state_BH: Tensor) -> tuple[Tensor, Tensor]:
        outputs: list[Tensor] = []
        for layer, h0 in self._layers(state_BH):
            x_BTD, _ = layer(x_BTD, h0.unsqueeze(0).contiguous())
            outputs.append(x_BTD)
        return x_BTD, x_BTD if len(outputs) == 1 else torch.cat(outputs, -1)

    def recur_folded(self, f_BTF: Tensor, state_BH: Tensor) -> tuple[Tensor, Tensor]:
        outputs: list[Tensor] = []
        before: nn.Linear | None = self.fields.project
        for layer, h0 in self._layers(state_BH):
            f_BTF = fused_gru(f_BTF, h0, layer, before)
            before = None
            outputs.append(f_BTF)
        return f_BTF, f_BTF if len(outputs) == 1 else torch.cat(outputs, -1)

    def _layers(self, state_BH: Tensor) -> Iterator[tuple[nn.GRU, Tensor]]:
        """Each layer with its part of the state."""
        parts = torch.chunk(state_BH, self.config.layers, 1)
        for layer, h0 in zip(self.layers, parts, strict=True):
            assert isinstance(layer, nn.GRU)
            yield layer, h0

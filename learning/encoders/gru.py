"""Gated recurrent units over an entity's records.

Source: Cho et al. 2014, arXiv:1406.1078."""

import torch
from torch import Tensor, nn

from learning.config import GruConfig
from learning.encoders.base import RecurrentEncoder
from learning.encoders.fused_gru import fused_gru
from schemas.records import Shape


class GruEncoder(RecurrentEncoder):
    """One nn.GRU per layer, so that every layer's state at every row is at hand."""

    def __init__(self, shape: Shape, config: GruConfig) -> None:
        super().__init__(shape, config)
        n = config.hidden
        self.layers = nn.ModuleList(nn.GRU(n, n, batch_first=True) for _ in range(config.layers))

    def recur(self, x_BTD: Tensor, state_BH: Tensor) -> tuple[Tensor, Tensor]:
        outputs: list[Tensor] = []
        h_BTD = x_BTD
        for layer, h0 in zip(
            self.layers, torch.chunk(state_BH, self.config.layers, 1), strict=True
        ):
            assert isinstance(layer, nn.GRU)
            if self.training and h_BTD.device.type == "cpu":
                h_BTD = fused_gru(h_BTD, h0, layer)
            else:
                h_BTD, _ = layer(h_BTD, h0.unsqueeze(0).contiguous())
            outputs.append(h_BTD)
        return h_BTD, h_BTD if len(outputs) == 1 else torch.cat(outputs, -1)

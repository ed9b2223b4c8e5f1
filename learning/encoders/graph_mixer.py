"""A node from its K most recent edges without attention or recurrence: an MLP that mixes them.

Source: GraphMixer, Cong et al. 2023, arXiv:2302.11636: the link encoder is an MLP-Mixer of one layer over the edges'
fields beside a fixed encoding of their age; the node encoder is the node's own features plus the mean of its
neighbours'. What differs: edges know where they stand among the others (GraphEncoder), and their sum over places is
divided by how many there are.

Mixing over edges has K places: the newest edge is always in the last one, those that are not there are zero."""

import torch
from torch import Tensor, nn

from learning.config import GraphMixerConfig
from learning.contract import View
from learning.encoders.graph import GraphEncoder
from schemas.stream import Shape


class GraphMixerEncoder(GraphEncoder):
    def __init__(self, shape: Shape, config: GraphMixerConfig) -> None:
        n, k = config.hidden, config.window
        super().__init__(shape, config, (3 if shape.noded else 1) * n)
        self.before_edges, self.before_fields = nn.LayerNorm(n), nn.LayerNorm(n)
        # widths as the authors': half over edges, four times over fields
        self.over_edges = nn.Sequential(nn.Linear(k, k // 2), nn.GELU(), nn.Linear(k // 2, k))
        self.over_fields = nn.Sequential(nn.Linear(n, 4 * n), nn.GELU(), nn.Linear(4 * n, n))
        self.after = nn.LayerNorm(n)

    def readout(self, view: View, x_BTD: Tensor, valid_BT: Tensor, own_BD: Tensor) -> Tensor:
        count = torch.clamp(view["length"], min=1).unsqueeze(1)
        x_BKD, there_BK1 = self._placed(view, x_BTD)
        mixed = self.over_edges(
            self.before_edges(x_BKD).transpose(1, 2) * there_BK1.transpose(1, 2)
        )
        x_BKD = x_BKD + mixed.transpose(1, 2)
        x_BKD = (x_BKD + self.over_fields(self.before_fields(x_BKD))) * there_BK1
        links_BD: Tensor = (self.after(x_BKD) * there_BK1).sum(1) / count
        if not self.shape.noded:
            return links_BD
        far_BD = (torch.relu(self._node(view, "far")) * valid_BT.unsqueeze(-1)).sum(1) / count
        return torch.cat([links_BD, far_BD, own_BD], -1)

    def _placed(self, view: View, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The edges in K places, the newest in the last; and which places are taken [B, K, 1]. A gather, so that it
        exports whatever T is."""
        k = self.config.window
        back = torch.arange(k - 1, -1, -1, device=x_BTD.device)  # edges that are newer
        at_BK = view["length"].unsqueeze(1) - 1 - back
        there_BK1 = (at_BK >= 0).to(x_BTD.dtype).unsqueeze(-1)
        index = torch.clamp(at_BK, min=0).unsqueeze(-1).expand(-1, -1, x_BTD.shape[2])
        return torch.gather(x_BTD, 1, index) * there_BK1, there_BK1

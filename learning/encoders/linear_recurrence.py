"""A gated linear recurrence: parallel over time in training, O(1) per record in serving.

h_t = a_t · h_{t-1} + sqrt(1 - a_t²) · (i_t · v_t), a and i sigmoid gates of the input alone.
Source: RG-LRU of Griffin, De et al. 2024, arXiv:2402.19427; minGRU, Feng et al. 2024,
arXiv:2410.01201, without its log-space scan.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.config import LinearRecurrenceConfig
from learning.encoders.base import RecurrentEncoder
from schemas.stream import Shape


def scan(a_BTD: Tensor, b_BTD: Tensor, h0_BD: Tensor, longest: int) -> Tensor:
    """h_t = a_t · h_{t-1} + b_t for all t at once, in log2(longest) doublings.

    After the doubling by s each row holds the composition of the last 2s steps. T may be any
    size up to `longest`, also a symbol of an exported graph."""
    t: object = a_BTD.shape[1]  # a symbol while exporting
    shift = 1
    while shift < longest:
        if isinstance(t, int) and shift >= t:
            break
        earlier_a = F.pad(a_BTD, (0, 0, shift, 0), value=1.0)[:, : a_BTD.shape[1]]
        earlier_b = F.pad(b_BTD, (0, 0, shift, 0))[:, : a_BTD.shape[1]]
        b_BTD = torch.addcmul(b_BTD, a_BTD, earlier_b)
        a_BTD = a_BTD * earlier_a
        shift *= 2
    return torch.addcmul(b_BTD, a_BTD, h0_BD.unsqueeze(1))


class LinearRecurrence(nn.Module):
    """One layer: gates of the scaled input, recurrence, a gated way out, added to what came in."""

    def __init__(self, hidden: int, longest: int) -> None:
        super().__init__()
        self.longest = longest
        self.gates = nn.Linear(hidden, 4 * hidden)
        self.out = nn.Linear(hidden, hidden)
        with torch.no_grad():  # remember between 2 and 100 steps to begin with
            forget = torch.linspace(0.5, 0.99, hidden)
            self.gates.bias[:hidden] = torch.logit(forget)

    def forward(self, x_BTD: Tensor, h0_BD: Tensor) -> tuple[Tensor, Tensor]:
        size = torch.sqrt(torch.mean(x_BTD * x_BTD, -1, keepdim=True) + 1e-6)
        a, i, v, way_out = torch.chunk(self.gates(x_BTD / size).float(), 4, -1)  # not in bf16
        a, rest = torch.sigmoid(a), torch.sigmoid(-a)  # 1 - a, exact also where a is nearly 1
        scale = torch.sqrt(torch.clamp(rest * (1.0 + a), min=1e-12))
        b = scale * torch.sigmoid(i) * torch.tanh(v)
        h_BTD = scan(a, b, h0_BD, self.longest)
        return x_BTD + self.out(h_BTD * F.silu(way_out)), h_BTD


class LinearRecurrenceEncoder(RecurrentEncoder):
    """Layers of the gated linear recurrence."""

    def __init__(self, shape: Shape, config: LinearRecurrenceConfig) -> None:
        super().__init__(shape, config)
        self.layers = nn.ModuleList(
            LinearRecurrence(config.hidden, config.window) for _ in range(config.layers)
        )

    def recur(self, x_BTD: Tensor, state_BH: Tensor) -> tuple[Tensor, Tensor]:
        states: list[Tensor] = []
        for layer, h0 in zip(
            self.layers, torch.chunk(state_BH, self.config.layers, 1), strict=True
        ):
            x_BTD, h_BTD = layer(x_BTD, h0)
            states.append(h_BTD)
        return x_BTD, states[0] if len(states) == 1 else torch.cat(states, -1)

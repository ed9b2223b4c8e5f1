"""What encoders share: a vector of unit length comes out; most read fields, those of events the last valid row."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.config_base import EncoderBase
from learning.config_images import TimmConfig
from learning.contract import Output, View
from learning.encoders.fields import Fields, row
from schemas.stream import Shape


class Encoder(nn.Module):
    """Rows -> a vector. `out` is the last linear layer, which rotations fold into."""

    config: EncoderBase | TimmConfig
    out: nn.Linear
    graphs: tuple[str, ...] = ("encode", "step")  # what a release of it holds
    unexported: tuple[str, ...] = (
        "log_variance.",
    )  # weights that its graphs lack, by how they begin

    def __init__(self, shape: Shape, config: EncoderBase | TimmConfig) -> None:
        super().__init__()
        self.shape = shape
        self.config = config

    def _end(self, width: int) -> None:
        """The last layers, of what `_output` takes."""
        self.out = nn.Linear(width, self.config.dim)
        if self.config.variance:
            self.log_variance = nn.Linear(width, self.config.dim)

    def _output(self, joined: Tensor, h_BTD: Tensor, extra: View) -> Output:
        """The vector of unit length, and where it is wanted its log variance, of joined [B, width]."""
        if self.config.variance:
            variance = torch.clamp(self.log_variance(joined), -10.0, 10.0)
            extra = {**extra, "log_variance": variance}
        return Output(F.normalize(self.out(joined), dim=-1), h_BTD, extra)

    def begin(self) -> None:
        """Takes the weights to begin from, where the settings name some; else those drawn stay."""

    @property
    def token_width(self) -> int:
        """Width of h_BTD."""
        return self.config.hidden

    @property
    def at_once(self) -> int:
        """Windows that are encoded together where no step is made."""
        return 1024

    def step(self, record: View) -> Output:
        """One more record each, where the encoder is recurrent."""
        raise NotImplementedError

    def score(self, source: View, target: View, pair: View) -> Tensor:
        """Logits [P] of pairs of nodes, where the encoder is one of graphs."""
        raise NotImplementedError

    def prepared(self, view: View) -> View:
        """With what is computed once for the whole view, before it is cut into buckets."""
        return view


class FieldEncoder(Encoder):
    """One whose rows are read by `fields` first."""

    config: EncoderBase
    fields: Fields
    own_categories = slice(None)  # the category columns that `fields` reads

    def own(self, view: View) -> View:
        """The view as `fields` reads it."""
        return view


class RecurrentEncoder(FieldEncoder):
    """Fields -> layers -> the last row's state beside its features -> a vector of unit length.

    The state packs all layers side by side: [B, H], H = layers · hidden."""

    folds = False  # there is a `recur_folded`, which is faster in training on a CPU

    def __init__(self, shape: Shape, config: EncoderBase) -> None:
        super().__init__(shape, config)
        self.fields = Fields(shape, config)
        self._end(2 * config.hidden)

    def recur(self, x_BTD: Tensor, state_BH: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs [B, T, hidden] of the last layer, and states [B, T, H] of all layers."""
        raise NotImplementedError

    def recur_folded(self, f_BTF: Tensor, state_BH: Tensor) -> tuple[Tensor, Tensor]:
        """`recur` of the projected features, where the first layer can take both maps in one."""
        raise NotImplementedError

    def forward(self, view: View) -> Output:
        """Padded rows change nothing: only what lies before them is read."""
        f_BTF = self.fields.features(view)
        last = (view["length"] - 1).reshape(-1, 1, 1)
        if self.folds and self.training and f_BTF.device.type == "cpu":
            h_BTD, states_BTH = self.recur_folded(f_BTF, view["state"])
            x_BD = self.fields.project(_at(f_BTF, last))
        else:
            x_BTD = self.fields.project(f_BTF)
            h_BTD, states_BTH = self.recur(x_BTD, view["state"])
            x_BD = _at(x_BTD, last)
        h_BD = _at(h_BTD, last)
        joined = torch.cat([h_BD, x_BD], -1)
        extra = {"state": h_BD if states_BTH is h_BTD else _at(states_BTH, last)}
        return self._output(joined, h_BTD, extra)

    def step(self, record: View) -> Output:
        """One more record each, from `state`: the view of `forward` without T and `length`."""
        rows = ("time_us", "numbers", "categories", "missing")
        view = {name: row(t) if name in rows else t for name, t in record.items()}
        view["length"] = torch.ones_like(record["time_us"])
        return self(view)  # type: ignore[no-any-return]


def _at(x_BTD: Tensor, last: Tensor) -> Tensor:
    return torch.gather(x_BTD, 1, last.expand(-1, 1, x_BTD.shape[2])).squeeze(1)

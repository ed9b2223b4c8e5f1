"""What is counted over the whole stream: moments of the features, categories admitted."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learning.config_base import EncoderBase
from learning.contract import View
from learning.encoders.fields import HUGE, Fields
from schemas.records import F32, I64, Bool
from schemas.stream import Shape

State = dict[str, npt.NDArray[Any]]

MEMORY = 1_000_000.0  # rows: older ones weigh less


class Moments:
    """Running mean and variance of each scalar feature, of the rows that have it."""

    def __init__(self, width: int) -> None:
        self.n = torch.zeros(width, dtype=torch.float64)
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.variance = torch.ones(width, dtype=torch.float64)

    @torch.no_grad()
    def add(self, fields: Fields, view: View) -> None:
        """Adds the valid rows of a view; a missing number is not one."""
        x = fields.scalars(view).cpu().double()
        there = view["valid_BT"].cpu()[..., None].expand(x.shape).clone()
        if fields.shape.numbers:
            there[..., : fields.shape.numbers] &= ~torch.isnan(view["numbers"].cpu())
        n = there.sum((0, 1)).double()
        mean = torch.where(there, x, 0.0).sum((0, 1)) / n.clamp(min=1)
        off = torch.where(there, x - mean, 0.0)
        variance = off.square().sum((0, 1)) / n.clamp(min=1)
        share = n / (self.n + n).clamp(min=1)
        gap = mean - self.mean
        self.variance = (
            self.variance * (1 - share) + variance * share + gap.square() * share * (1 - share)
        )
        self.mean = self.mean + gap * share
        self.n = (self.n + n).clamp(max=MEMORY)

    def mean_and_scale(self) -> tuple[Tensor, Tensor]:
        return self.mean.float(), self.variance.sqrt().float()

    def state_dict(self) -> State:
        return {k: getattr(self, k).numpy().copy() for k in ("n", "mean", "variance")}

    def load_state_dict(self, state: State) -> None:
        self.n, self.mean, self.variance = (
            torch.from_numpy(state[k].copy()) for k in ("n", "mean", "variance")
        )


class Admission:
    """Which category buckets have a row of their own: those seen often enough, and lately."""

    def __init__(self, config: EncoderBase, shape: Shape) -> None:
        self._config = config
        self._buckets = 1 << config.bucket_bits
        size = (shape.categories, self._buckets)
        self.seen = np.zeros(size, np.int64)
        self.last = np.zeros(size, np.int64)  # the row number when it was seen last
        self.admitted = np.zeros(size, np.bool_)
        self.rows = 0

    def add(self, categories: I64, missing: Bool) -> None:
        """Counts rows' values. [N, Fc] both."""
        n, width = categories.shape
        self.rows += n
        if not n or not width:
            return
        at = (categories & (self._buckets - 1)) + np.arange(width) * self._buckets
        counts = np.bincount(at[~missing], minlength=self.seen.size).reshape(self.seen.shape)
        self.seen += counts
        self.last[counts > 0] = self.rows

    def settle(self) -> tuple[I64, bool]:
        """Rows of the embedding table that are newly admitted, and whether any mask changed."""
        old = (self.rows - self.last > self._config.forget_after) & (self.seen > 0)
        self.seen[old] = 0
        admitted = self.seen >= self._config.admit_after
        new = np.argwhere(admitted & ~self.admitted)
        changed = bool((admitted != self.admitted).any())
        self.admitted = admitted
        return new[:, 0] * (self._buckets + 2) + new[:, 1], changed

    def mask(self) -> Tensor:
        """The encoder's `admitted` buffer: per field its buckets, then two rows for the rest."""
        return torch.from_numpy(np.pad(self.admitted, ((0, 0), (0, 2))).ravel())

    def state_dict(self) -> State:
        rows = np.array([self.rows])
        return {"seen": self.seen, "last": self.last, "admitted": self.admitted, "rows": rows}

    def load_state_dict(self, state: State) -> None:
        self.seen, self.last = state["seen"].copy(), state["last"].copy()
        self.admitted = state["admitted"].astype(np.bool_)
        self.rows = int(state["rows"][0])


def clip_bounds(numbers: F32) -> tuple[Tensor, Tensor]:
    """Raw bounds of each number field, far outside of what the rows [N, Fn] show.

    They stay for a generation; a field with no value yet is not clipped."""
    low, high = (np.full(numbers.shape[1], bound, np.float64) for bound in (-HUGE, HUGE))
    for field, column in enumerate(numbers.T):
        there = column[~np.isnan(column)].astype(np.float64)
        if len(there):
            a, b = np.quantile(there, [0.001, 0.999])
            margin = max(3 * (b - a), abs(a), abs(b), 1.0)
            low[field], high[field] = max(a - margin, -HUGE), min(b + margin, HUGE)
    return torch.from_numpy(low).float(), torch.from_numpy(high).float()

"""Fields of a record -> features, all inside the module and so inside the released graph.

Shapes: B windows, T rows, Fn number fields, Fc category fields, K = 2 + 3·Fn totals, F features.
"""

import math

import torch
from torch import Tensor, nn

from learning.config_base import EncoderBase
from learning.contract import View
from schemas.stream import Shape

DAY_US = 86_400_000_000
LEAST_SCALE = 0.05  # of a normaliser: a constant field stays small when it first changes
HUGE = 1e30  # clip bounds before the first are set; float32 holds it


def symlog(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.log(1.0 + torch.abs(x))


def row(tensor_BT: Tensor) -> Tensor:
    """[B, T, ...] <- [B, ...]: a single record as a window of one row."""
    return tensor_BT.unsqueeze(1)


class Fields(nn.Module):
    """Hashed categories by embedding; numbers, time and history normalised; one linear layer.

    `scalars` are [symlog numbers Fn | log Δt | log count, sessions, tenure | per number: share
    present, mean, spread so far]; `mean` and `scale` are theirs."""

    admitted: Tensor
    first_row: Tensor
    low: Tensor
    high: Tensor
    mean: Tensor
    scale: Tensor

    cyclic = 4  # features of the hour and the day

    def __init__(self, shape: Shape, config: EncoderBase) -> None:
        super().__init__()
        self.shape = shape
        self.buckets = 1 << config.bucket_bits
        self.rows = self.buckets + 2  # and "unknown", "missing"
        self.scalar_width = self.scalar_count(shape)
        width = self.scalar_width + shape.numbers + self.cyclic
        width += shape.categories * config.category_dim
        if shape.categories:
            self.embedding = nn.Embedding(shape.categories * self.rows, config.category_dim)
            nn.init.normal_(self.embedding.weight, std=0.5)
            admitted = torch.zeros(shape.categories * self.rows, dtype=torch.bool)
            self.register_buffer("admitted", admitted)
            first = torch.arange(shape.categories) * self.rows
            self.register_buffer("first_row", first, persistent=False)
        if shape.numbers:
            self.register_buffer("low", torch.full((shape.numbers,), -HUGE))
            self.register_buffer("high", torch.full((shape.numbers,), HUGE))
        self.register_buffer("mean", torch.zeros(self.scalar_width))
        self.register_buffer("scale", torch.ones(self.scalar_width))
        self.project = nn.Linear(width, config.hidden)

    @staticmethod
    def scalar_count(shape: Shape) -> int:
        """S, the width of `scalars`; the numbers come first."""
        return 4 + 4 * shape.numbers

    def forward(self, view: View) -> Tensor:
        """The view's rows as features through the linear layer, [B, T, hidden]."""
        projected: Tensor = self.project(self.features(view))
        return projected

    def features(self, view: View) -> Tensor:
        """What the linear layer reads, [B, T, F]."""
        parts = [(self.scalars(view) - self.mean) / self.scale]
        if self.cyclic:
            parts.append(self._cyclic(view["time_us"]))
        if self.shape.numbers:
            gone = torch.isnan(view["numbers"])
            there = 1.0 - gone.to(torch.float32)
            width = self.shape.numbers
            parts[0] = torch.cat([parts[0][..., :width] * there, parts[0][..., width:]], -1)
            parts.append(gone.to(torch.float32))
        if self.shape.categories:
            parts.append(self.embedding(self.category_rows(view)).flatten(2))
        return torch.cat(parts, -1)

    def scalars(self, view: View) -> Tensor:
        """Every number-like feature before it is normalised, [B, T, S] float32."""
        time_us = view["time_us"]
        before = torch.cat([row(view["previous_us"]), time_us[:, :-1]], 1)
        gap_us = time_us - before
        tenure_us = time_us - row(view["first_us"])
        totals = view["totals"]
        count = torch.ones_like(time_us).cumsum(1) + row(totals[:, 0])
        opened = (gap_us > self.shape.session_gap_us).to(torch.int64).cumsum(1)
        times = torch.stack(
            [
                gap_us.to(torch.float64) * 1e-6,
                count,
                opened + row(totals[:, 1]),
                tenure_us.to(torch.float64) * 1e-6,
            ],
            -1,
        )
        # Not on int64: ONNX Runtime 1.31 clips that by its lower 32 bits.
        logs = torch.log(1.0 + torch.clamp(times, min=0.0)).to(torch.float32)
        if not self.shape.numbers:
            return logs
        return torch.cat([self._numbers(view), logs, self._history(view, count)], -1)

    def _numbers(self, view: View) -> Tensor:
        x = view["numbers"]
        there = torch.where(torch.isnan(x), torch.zeros_like(x), x)
        return symlog(torch.minimum(torch.maximum(there, self.low), self.high))

    def _history(self, view: View, count: Tensor) -> Tensor:
        """Share present, mean and spread of each number through the row itself, [B, T, 3·Fn]."""
        x, totals = view["numbers"], view["totals"]
        there = torch.logical_not(torch.isnan(x))
        finite = torch.clamp(torch.where(there, x, torch.zeros_like(x)), -3.4e38, 3.4e38)
        y = symlog(finite.to(torch.float64))
        sums = torch.cat([there.to(torch.float64), y, y * y], -1).cumsum(1) + row(totals[:, 2:])
        n, total, squares = torch.chunk(sums, 3, -1)
        some = torch.clamp(n, min=1.0)
        mean = total / some
        variance = torch.clamp(squares / some - mean * mean, min=0.0)
        share = n / torch.clamp(count, min=1.0).unsqueeze(-1)
        return torch.cat([share, mean, torch.sqrt(variance + 1e-6)], -1).to(torch.float32)

    def _cyclic(self, time_us: Tensor) -> Tensor:
        """Sine and cosine of the hour of day and of the day of week, [B, T, 4]."""
        phases = [
            torch.remainder(time_us, period).to(torch.float64) * (2 * math.pi / period)
            for period in (DAY_US, 7 * DAY_US)
        ]
        angle = torch.stack(phases, -1).to(torch.float32)
        return torch.cat([torch.sin(angle), torch.cos(angle)], -1)

    def category_rows(self, view: View) -> Tensor:
        """Row of the embedding table of each value, [B, T, Fc]."""
        first = self.first_row
        bucket = torch.bitwise_and(view["categories"], self.buckets - 1) + first
        known = self.admitted[bucket]
        if "unknown" in view:
            known = torch.logical_and(known, torch.logical_not(view["unknown"]))
        at = torch.where(known, bucket, first + self.buckets)
        return torch.where(view["missing"], first + self.buckets + 1, at)

    @torch.no_grad()
    def renormalise(self, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Sets mean and scale and folds the change into the linear layer: the function stays.

        Returns the factor by which each scalar's weights grew, and the slice they are in."""
        scale = scale.clamp(min=LEAST_SCALE)
        s, width = self.scalar_width, self.shape.numbers
        weight = self.project.weight
        grew = scale / self.scale
        shift = weight[:, :s] * ((mean - self.mean) / self.scale)
        self.project.bias.add_(shift.sum(1))
        # A missing number is 0 after the normaliser, whatever its mean: its indicator pays.
        there = s + self.cyclic
        weight[:, there : there + width] -= shift[:, :width]
        weight[:, :s] *= grew
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        return grew, torch.arange(s)

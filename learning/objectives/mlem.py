"""MLEM's generative half: from each row, predict the next one, field by field."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.config import MlemConfig
from learning.contract import Batch, Encode, Needs, Objective, Update, View
from schemas.stream import Shape


def masked_mean(x: Tensor, there: Tensor) -> Tensor:
    """Mean of x where `there`; 0 where nothing is."""
    return torch.where(there, x, 0.0).sum() / torch.clamp(there.sum(), min=1)


def category_loss(logits: Tensor, bucket: Tensor, there: Tensor) -> Tensor:
    """Mean cross-entropy. logits [B, T, Fc, C]; bucket, there [B, T, Fc]."""
    flat = F.cross_entropy(logits.flatten(0, 2), bucket.flatten(), reduction="none")
    return masked_mean(flat.view(bucket.shape), there)


def number_loss(guess: Tensor, truth: Tensor, there: Tensor) -> Tensor:
    """Mean Huber loss (δ = 1) of normalised values. All [B, T, ...]."""
    return masked_mean(F.huber_loss(guess, truth, reduction="none"), there)


class Mlem(Objective):
    """`name = "mlem"`: heads for category buckets, numbers and log Δt on every row's output.

    Beside CoLES or VICReg it reads the slices that they have encoded already.
    Source: MLEM, Moskvoretskii et al., arXiv:2401.15935; next event in place of its decoder."""

    def __init__(self, config: MlemConfig, shape: Shape, hidden: int) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        self.needs = Needs(following=True)
        self.classes = 1 << config.bucket_bits
        # Running centre and size of the targets: symlog numbers, then log Δt.
        self.register_buffer("centre", torch.zeros(shape.numbers + 1))
        self.register_buffer("size", torch.ones(shape.numbers + 1))
        self.register_buffer("batches", torch.zeros(()))
        self.numbers = nn.Linear(hidden, shape.numbers + 1)
        if shape.categories:
            self.categories = nn.Linear(hidden, shape.categories * self.classes)

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        view = batch.views["next"]
        h_BTD = student(view).h_BTD[:, :-1]
        follows = view["valid_BT"][:, 1:]
        truth, there = self._targets(view)
        guess = self.numbers(h_BTD).float()
        centred = (truth - self.centre) / self.size
        n = self.shape.numbers
        loss = self.config.time * number_loss(guess[..., n], centred[..., n], follows)
        if n:
            numbers = number_loss(guess[..., :n], centred[..., :n], there[..., :n])
            loss = loss + self.config.number * numbers
        if self.shape.categories:
            logits = self.categories(h_BTD).float().unflatten(-1, (-1, self.classes))
            bucket = torch.bitwise_and(view["categories"][:, 1:], self.classes - 1)
            known = follows[..., None] & ~view["missing"][:, 1:]
            loss = loss + self.config.category * category_loss(logits, bucket, known)
        return loss, self._moments(truth, there)

    def _targets(self, view: View) -> tuple[Tensor, Tensor]:
        """Symlog numbers and log Δt of every row but the first, and which of them are there."""
        x = view["numbers"][:, 1:]
        there = ~torch.isnan(x)
        x = torch.where(there, x, 0.0)
        seconds = (view["time_us"][:, 1:] - view["time_us"][:, :-1]).double() * 1e-6
        gap = torch.log1p(torch.clamp(seconds, min=0.0)).float()
        follows = view["valid_BT"][:, 1:, None]
        truth = torch.cat([torch.sign(x) * torch.log1p(torch.abs(x)), gap[..., None]], -1)
        return truth, torch.cat([there & follows, follows], -1)

    def _moments(self, truth: Tensor, there: Tensor) -> Update:
        n = torch.clamp(there.sum((0, 1)), min=1)
        centre = torch.where(there, truth, 0.0).sum((0, 1)) / n
        off = torch.where(there, truth - centre, 0.0)
        size = torch.sqrt(off.square().sum((0, 1)) / n)
        seen = there.any(0).any(0)  # what no row of the batch has stays where it is
        return {
            "centre": torch.where(seen, centre, self.centre),
            "size": torch.where(seen, size, self.size),
        }

    @torch.no_grad()
    def apply_update(self, update: Update) -> None:
        self.batches += 1
        share = max(0.01, 1.0 / float(self.batches))
        self.centre.lerp_(update["centre"], share)
        self.size.lerp_(update["size"].clamp(min=0.05), share)

    centre: Tensor
    size: Tensor
    batches: Tensor

"""W-MSE: two looks agree after whitening, which leaves no room for collapse."""

import torch
from torch import Tensor

from learning.config_images import WMseConfig
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.byol import byol_loss
from learning.objectives.heads import Projector, float32

SHRINKAGE = 1e-4  # of the mean variance, on the diagonal: the paper has none, and needs full rank


@float32
def whitened(y_ND: Tensor) -> Tensor:
    """Centred, and of covariance 1: (y - mean) L⁻ᵀ, with L Lᵀ the covariance of the N > D rows. [N, D]

    Source: W-MSE, Ermolov et al., arXiv:2007.06346, equation 5."""
    n, d = y_ND.shape
    centred = y_ND - y_ND.mean(0)
    spread_DD = centred.T @ centred / (n - 1)
    shrink = SHRINKAGE * spread_DD.diagonal().mean() + 1e-7
    spread_DD = spread_DD + shrink * torch.eye(d, device=y_ND.device)
    # What is not finite must come out as that, to be skipped, and not as an error.
    root_DD = torch.linalg.cholesky_ex(spread_DD).L
    white_DN: Tensor = torch.linalg.solve_triangular(root_DD, centred.T, upper=False)
    return white_DN.T


def w_mse_loss(a_BD: Tensor, b_BD: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
    """2 - 2·cosine of two views of B images, whitened part by part and each for itself; a mean.

    a_BD, b_BD: projected vectors, row by row of one image; parts: rows of each sub-batch. Returns a scalar."""
    a, b = (torch.cat([whitened(x_BD[part]) for part in parts]) for x_BD in (a_BD, b_BD))
    return byol_loss(a, b)


class WMse(Objective):
    """`name = "w_mse"`: sub-batches are drawn anew each update. Of a batch that is smaller than `subbatch` only the
    first dimensions are whitened, half as many as it has images."""

    def __init__(self, config: WMseConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(slices=2)
        self.head = Projector(dim, config.hidden, config.projection)

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        y_MD = self.head(student(batch.views["slices"]).z_BD)
        first, second = batch.pairs["positives"]
        n = len(first)
        y_MD = y_MD[:, : max(1, n // 2)]
        order = torch.randperm(n).to(y_MD.device)
        parts = torch.tensor_split(order, max(1, n // self.config.subbatch))
        return w_mse_loss(y_MD[first], y_MD[second], parts), {}

"""GMML: the pixels of hidden patches are predicted from what the encoder knows there."""

import torch.nn.functional as F
from torch import Tensor

from learning.config_images import GmmlConfig
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.heads import float32, mlp


@float32
def gmml_loss(guess_BTP: Tensor, truth_BTP: Tensor, masked_BT: Tensor) -> Tensor:
    """Mean absolute error of the pixels of hidden patches; without any, 0. A scalar.

    guess_BTP, truth_BTP: P values of each of T patches of M images.
    Source: GMML, Atito et al., arXiv:2205.14986, equation 1, over what is hidden."""
    each_BT = (guess_BTP - truth_BTP).abs().mean(2)
    return (each_BT * masked_BT).sum() / masked_BT.sum().clamp(min=1)


def patches(image: Tensor, grid: int, pixels: int) -> Tensor:
    """Images [M, 3, s, s] -> [M, grid², 3·pixels²], patches in rows, each averaged down to `pixels` a side."""
    small = F.adaptive_avg_pool2d(image, grid * pixels)
    return F.unfold(small, pixels, stride=pixels).transpose(1, 2)


class Gmml(Objective):
    """`name = "gmml"`: which patches are hidden, and that they are connected, is the view's affair; the decoder sees
    one token at a time."""

    def __init__(self, config: GmmlConfig, tokens: int) -> None:
        """tokens: width of the encoder's h_BTD."""
        super().__init__()
        self.config = config
        self.needs = Needs(slices=1, patches=config.patches, rows=True)
        self.decoder = mlp(tokens, config.hidden, 3 * config.pixels**2)

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        view = batch.views["masked"]
        masked_BT = view["masked_BT"]
        guess_BTP = self.decoder(student(view).h_BTD)
        truth_BTP = patches(view["image"], int(masked_BT.shape[1] ** 0.5), self.config.pixels)
        return gmml_loss(guess_BTP, truth_BTP, masked_BT), {}

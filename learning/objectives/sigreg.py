"""LeJEPA: crops of an image predict the mean of its looks, while a batch's vectors are held Gaussian by SIGReg."""

import torch
from torch import Tensor

from learning.config_images import SigregConfig
from learning.contract import Batch, Encode, Needs, Objective, Update
from learning.objectives.heads import Projector, by_look, float32

KNOTS, FAR = 17, 3.0  # of the integral over t, from -FAR to FAR


@float32
def sigreg(y_BP: Tensor, direction_PS: Tensor) -> Tensor:
    """How far B vectors are from N(0, I): the Epps-Pulley statistic along each of S directions; their mean.

    B · ∫ |φ_y(t) - exp(-t²/2)|² exp(-t²/2) dt by the trapezoid rule, φ_y being the empirical characteristic
    function. Directions have unit length. Returns a scalar.
    Source: SIGReg of LeJEPA, Balestriero & LeCun, arXiv:2511.08544."""
    t = torch.linspace(0.0, FAR, KNOTS, device=y_BP.device)  # and as much again below 0
    normal = torch.exp(-0.5 * t.square())
    weight = 2.0 * FAR / (KNOTS - 1) * normal
    weight = torch.cat([weight[:1] / 2, weight[1:-1], weight[-1:] / 2])
    angle_BST = (y_BP @ direction_PS).unsqueeze(2) * t
    off_ST = (angle_BST.cos().mean(0) - normal).square() + angle_BST.sin().mean(0).square()
    return len(y_BP) * (off_ST @ weight).mean()


@float32
def prediction(look_BVP: Tensor, crop_BCP: Tensor) -> Tensor:
    """Mean squared distance of every crop from the mean of its image's looks. A scalar.

    Source: LeJEPA, arXiv:2511.08544, equation 4; no gradient is stopped."""
    return (look_BVP.mean(1, keepdim=True) - crop_BCP).square().mean()


class Sigreg(Objective):
    """`name = "sigreg"`: no teacher, no predictor, no negatives."""

    def __init__(self, config: SigregConfig, dim: int) -> None:
        super().__init__()
        self.config = config
        self.needs = Needs(slices=2, small=config.small)
        self.head = Projector(dim, config.hidden, config.projection)

    def forward(self, student: Encode, _teacher: Encode, batch: Batch, /) -> tuple[Tensor, Update]:
        c = self.config
        names = ["slices", "small"] if c.small else ["slices"]
        parts = [by_look(self.head(student(batch.views[n]).z_BD), batch) for n in names]
        crop_BCP = torch.cat(parts, 1)
        direction_PS = torch.randn(c.projection, c.directions).to(crop_BCP.device)
        direction_PS = direction_PS / direction_PS.norm(dim=0)
        gaussian = torch.stack([sigreg(y, direction_PS) for y in crop_BCP.unbind(1)]).mean()
        predicted = prediction(parts[0], crop_BCP)
        return (1.0 - c.gaussian) * predicted + c.gaussian * gaussian, {}

"""Settings of what images are learnt by. Needs no torch."""

from typing import Annotated, Literal

from msgspec import Meta

from learning.config_base import Count, ObjectiveBase, Positive, SliceBase, refuse

Small = Annotated[int, Meta(ge=0, le=16)]  # small crops per image, beside the two looks
Momentum = Annotated[float, Meta(ge=0, lt=1)]
Width = Annotated[int, Meta(ge=2, le=65536)]


class HeadBase(ObjectiveBase, frozen=True, forbid_unknown_fields=True):
    """A head of two layers that the loss looks at."""

    hidden: Width = 512
    projection: Width = 128  # width of the head's output


class TaughtBase(HeadBase, frozen=True, forbid_unknown_fields=True):
    """... and an average of the head, for the teacher."""

    momentum: Momentum = 0.99  # of the teacher's head; the teacher's encoder has learner.ema_decay


class BarlowTwinsConfig(HeadBase, frozen=True, forbid_unknown_fields=True, tag="barlow_twins"):
    """Each dimension agrees over two looks, and with no other dimension."""

    projection: Width = 512
    redundancy: Positive = 0.005  # weight of the dimensions' independence


class SimclrConfig(HeadBase, frozen=True, forbid_unknown_fields=True, tag="simclr"):
    """Two looks agree, looks at other entities repel."""

    temperature: Positive = 0.2


class WMseConfig(HeadBase, frozen=True, forbid_unknown_fields=True, tag="w_mse"):
    """Two looks agree after whitening."""

    projection: Annotated[int, Meta(ge=2, le=1024)] = 16  # dimensions whitened
    subbatch: Annotated[int, Meta(ge=4)] = 64  # images that are whitened together

    def __post_init__(self) -> None:
        if self.subbatch < 2 * self.projection:
            needs = (
                f"to whiten projection = {self.projection} dimensions takes twice as many images"
            )
            raise refuse("learner.objective.subbatch", self.subbatch, needs)


class ByolConfig(TaughtBase, frozen=True, forbid_unknown_fields=True, tag="byol"):
    """From one look, the averaged encoder's vector of the other is predicted."""


class MocoV3Config(TaughtBase, frozen=True, forbid_unknown_fields=True, tag="moco_v3"):
    """Likewise, by contrast with the averaged encoder's vectors of other images."""

    temperature: Positive = 0.2


class DinoConfig(TaughtBase, frozen=True, forbid_unknown_fields=True, tag="dino"):
    """Which prototypes the averaged encoder sees in a look is predicted from other crops."""

    prototypes: Width = 1024
    temperature: Positive = 0.1  # of the student's shares
    epsilon: Positive = 0.03  # the lower, the harder the teacher deals images to prototypes
    small: Small = 0
    patches: Annotated[float, Meta(ge=0, lt=1)] = 0.0  # share hidden; above 0: iBOT's loss too
    koleo: Annotated[float, Meta(ge=0)] = 0.0  # weight of KoLeo


class SwavConfig(HeadBase, frozen=True, forbid_unknown_fields=True, tag="swav"):
    """The prototypes that one crop is dealt to are predicted from another."""

    prototypes: Width = 512
    temperature: Positive = 0.1
    epsilon: Positive = 0.03  # the lower, the harder images are dealt to prototypes
    small: Small = 0


class InstanceConfig(ObjectiveBase, frozen=True, forbid_unknown_fields=True, tag="instance"):
    """A look finds the other look at its image among the batch and a bank of earlier vectors."""

    bank: Annotated[int, Meta(ge=1, le=1 << 20)] = 4096  # vectors kept
    temperature: Positive = 0.07


class GmmlConfig(ObjectiveBase, frozen=True, forbid_unknown_fields=True, tag="gmml"):
    """The pixels of hidden patches are predicted from the tokens there."""

    patches: Annotated[float, Meta(gt=0, lt=1)] = 0.5  # share hidden
    hidden: Width = 256  # of the decoder
    pixels: Annotated[int, Meta(ge=1, le=64)] = 8  # of a patch's side that are predicted


class SigregConfig(HeadBase, frozen=True, forbid_unknown_fields=True, tag="sigreg"):
    """All crops of an image predict the mean of its looks, while all vectors are Gaussian."""

    projection: Width = 64
    gaussian: Annotated[float, Meta(gt=0, lt=1)] = (
        0.05  # weight of that, the prediction's 1 less it
    )
    directions: Count = 256  # drawn anew each update, along which it is tested
    small: Small = 0


class SscdConfig(ObjectiveBase, frozen=True, forbid_unknown_fields=True, tag="sscd"):
    """Two looks agree, others repel, the nearest most: for finding copies."""

    temperature: Positive = 0.05
    entropy: Annotated[float, Meta(ge=0)] = 30.0  # weight of the distance to the nearest other one
    mixed: bool = True  # also looks mixed of two images, which agree with both


class CassleConfig(SliceBase, frozen=True, forbid_unknown_fields=True, tag="cassle"):
    """What the last release said of a view is predicted: beside another objective, of any kind."""

    loss: Literal["cosine", "contrast"] = "cosine"
    hidden: Width = 256  # of the predictor
    temperature: Positive = 0.2  # of the contrast


ImageObjectives = (
    BarlowTwinsConfig
    | SimclrConfig
    | WMseConfig
    | ByolConfig
    | MocoV3Config
    | DinoConfig
    | SwavConfig
    | InstanceConfig
    | GmmlConfig
    | SigregConfig
    | SscdConfig
)

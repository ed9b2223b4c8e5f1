"""Settings of images: their encoder, their augmented views, what they are learnt by. Needs no torch."""

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from learning.config_base import Count, ObjectiveBase, Positive, Share, SliceBase, refuse

Range: TypeAlias = tuple[float, float]
Small = Annotated[int, Meta(ge=0, le=16)]  # small crops per image, beside the two looks
Momentum = Annotated[float, Meta(ge=0, lt=1)]
Width = Annotated[int, Meta(ge=2, le=65536)]


class TimmConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name", tag="timm"
):
    """A backbone of timm, by its name there: `[encoder] name = "timm"`."""

    dim: Annotated[int, Meta(ge=2, le=4096)] = 64  # D: size of the published vector
    backbone: str = "resnet10t"  # any name of timm.list_models()
    size: Annotated[int, Meta(ge=8, le=1024)] = 32  # side of what the backbone sees
    window: Annotated[int, Meta(ge=1, le=256)] = 1  # newest images of an entity; their mean vector
    norm: str = "group"  # of a CNN: "group" in place of its BatchNorm, or "own", which is frozen
    stem: str = (
        "auto"  # of a ResNet: "small" keeps the resolution, "half" halves it, "own", by size
    )
    width: Annotated[float, Meta(gt=0, le=4)] | None = None  # of a ResNet: times its channels
    patch: Annotated[int, Meta(ge=0, le=64)] = 0  # of a ViT: side of a patch; 0: as its name says
    weights: str = ""  # a file of safetensors to begin from

    def __post_init__(self) -> None:
        for key, known in (("norm", ("group", "own")), ("stem", ("auto", "small", "half", "own"))):
            if getattr(self, key) not in known:
                raise refuse(f"encoder.{key}", repr(getattr(self, key)), f"known are {known}")

    @property
    def hidden(self) -> int:
        return self.dim

    @property
    def kept(self) -> int:
        """Width of what is kept of each image: its vector."""
        return self.dim

    @property
    def state(self) -> int:
        """Nothing recurs."""
        return 0

    @property
    def variance(self) -> bool:
        return False


class ImageViews(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[learner.views]`: how looks at one image differ. What is 0 does not happen."""

    scale: Range = (0.2, 1.0)  # of the image's area, in a look
    ratio: Range = (0.75, 1.3333)  # a look's width by its height, of the image
    flip: Share = 0.5  # chance of being mirrored
    jitter: Share = 0.8  # chance that colours change, each by a factor of up to 1 ± what follows
    brightness: Share = 0.4
    contrast: Share = 0.4
    saturation: Share = 0.4
    hue: Annotated[float, Meta(ge=0, le=0.5)] = 0.1  # of a turn, to either side
    grey: Share = 0.2  # chance
    blur: Share = 0.5  # chance, where encoder.size is 64 at least
    solarise: Share = 0.1  # likewise
    saliency: Share = 0.0  # chance that what is likely background is replaced
    background: Literal["grey", "image"] = "grey"  # ... by that, or by another image of the batch
    small_size: Annotated[int, Meta(ge=0, le=1024)] = (
        0  # side of small crops; 0: half of encoder.size
    )
    small_scale: Range = (0.1, 0.4)  # of the image's area, in a small crop
    mask: Literal["block", "random"] = "block"  # hidden patches are side by side, or anywhere

    def __post_init__(self) -> None:
        for key in ("scale", "ratio", "small_scale"):
            low, high = getattr(self, key)
            if not 0 < low <= high or (key != "ratio" and high > 1):
                needs = "it must be [least, most], above 0" + (
                    "" if key == "ratio" else " and 1 at most"
                )
                raise refuse(f"learner.views.{key}", [low, high], needs)


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

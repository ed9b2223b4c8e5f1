"""Settings of images: their encoder and their augmented views. Needs no torch."""

from typing import Annotated

import msgspec
from msgspec import Meta

from learning.config_base import refuse


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
    width: Annotated[float, Meta(gt=0, le=4)] = 1.0  # of a ResNet: times its channels
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

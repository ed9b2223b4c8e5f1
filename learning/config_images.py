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
    norm: str = "group"  # of a CNN: "group" in place of its BatchNorm, or "own"
    stem: str = "auto"  # of a ResNet: "small" keeps the resolution, "own", or by the size
    weights: str = ""  # a file of safetensors to begin from

    def __post_init__(self) -> None:
        for key, known in (("norm", ("group", "own")), ("stem", ("auto", "small", "own"))):
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

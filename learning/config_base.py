"""What settings of encoders and objectives share. Needs no torch."""

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.errors import SettingsError

Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


def refuse(key: str, found: object, needs: str) -> SettingsError:
    """What was found, what is needed, where to change it."""
    section, _, name = key.rpartition(".")
    return SettingsError(f"{key} is {found}; {needs}. Change {name} under [{section}].")


class EncoderBase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name"):
    """What all encoders of events share."""

    dim: Annotated[int, Meta(ge=2, le=4096)] = 64  # D: size of the published vector
    hidden: Annotated[int, Meta(ge=1, le=4096)] = 64
    layers: Annotated[int, Meta(ge=1, le=16)] = 1
    window: Annotated[int, Meta(ge=4, le=4096)] = 64  # L of the anchor rule
    category_dim: Count = 16
    bucket_bits: Annotated[int, Meta(ge=1, le=24)] = 12  # 2^k buckets per category field
    admit_after: Count = 3  # a bucket gets a row of its own once it was in so many records
    forget_after: Count = 2_000_000  # ... and loses it when so many others passed without it
    category_dropout: Share = 0.02  # of single values, shown as unknown in training
    field_dropout: Share = 0.1  # of whole fields of a training view, shown as missing
    history_dropout: Share = 0.5  # of training views, shown as if the entity began there
    variance: bool = False  # a second output: log variance of each vector

    def __post_init__(self) -> None:
        if self.window % 2:
            needs = "it must be even, for the anchor rule halves it"
            raise refuse("encoder.window", self.window, needs)
        for key in ("category_dropout", "field_dropout"):
            if getattr(self, key) >= 1:
                raise refuse(f"encoder.{key}", 1, "it must be below 1, or nothing is left to learn")

    @property
    def state(self) -> int:
        """H: width of the recurrent state, all layers side by side."""
        return self.hidden * self.layers

    @property
    def kept(self) -> int:
        """Width of what is kept of an entity beside its rows."""
        return self.state


class ObjectiveBase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="name"):
    weight: Positive = 1.0


class SliceBase(ObjectiveBase, frozen=True, forbid_unknown_fields=True):
    """How slices are cut: so many per entity, each a share of the rows there are."""

    slices: Annotated[int, Meta(ge=2, le=64)] = 2
    shortest: Annotated[float, Meta(gt=0, le=1)] = 0.2
    longest: Annotated[float, Meta(gt=0, le=1)] = 0.8

    def __post_init__(self) -> None:
        if self.shortest > self.longest:
            found = f"{self.shortest}, above longest = {self.longest}"
            raise refuse("learner.objective.shortest", found, "it must not exceed longest")

"""lightly's VICReg on the images task and for the clock, in an environment of its own: see lightly_vicreg.py."""

import numpy as np

from benchmarks import cifar
from benchmarks.cifar import Cifar, Right
from benchmarks.reference import LIGHTLY, Columns
from learning.config import VicregConfig
from learning.config_images import ImageViews, TimmConfig
from learning.encoders.image import TimmEncoder
from schemas.records import U8

RATE = 2e-3


def columns(encoder: TimmConfig, views: ImageViews, images: U8, **others: object) -> Columns:
    """The same backbone, views and width of the expander as ours; it has its own BatchNorm where not `group`."""
    made = TimmEncoder(cifar.SHAPE, encoder).backbone
    stages = (made.layer1, made.layer2, made.layer3, made.layer4)
    of = {
        "backbone": encoder.backbone, "size": encoder.size, "stride": made.conv1.stride[0],
        "channels": [stage[0].conv1.out_channels for stage in stages],
        "bright": views.brightness, "contrast": views.contrast, "sat": views.saturation,
        "hue": views.hue, "jitter": views.jitter, "grey": views.grey, "flip": views.flip,
        "least": views.scale[0], "expander": VicregConfig().expander,
        "rate": RATE, "workers": 0, "device": "cpu", "seed": 0, "group": False, "images": images,
    }  # fmt: skip
    return {name: np.asarray(value) for name, value in (of | others).items()}


def trained(
    data: Cifar, rows: Columns, updates: int, batch: int, seed: int, device: str
) -> tuple[Right, float]:
    """Its features after so many updates, and their seconds; raises reference.Missing."""
    asked = np.concatenate([part.pixels for part in data])
    others = {"updates": updates, "batch": batch, "seed": seed, "device": device, "asked": asked}
    rows = rows | {name: np.asarray(value) for name, value in others.items()}
    answer = np.load(LIGHTLY.ask("train", rows, ".npz"))
    parts = np.split(answer["vectors"], np.cumsum([len(part.label) for part in data])[:-1])
    return cifar.probed(data, parts), float(answer["seconds"])


def images_per_second(rows: Columns, updates: int, batch: int) -> float:
    """Of its training loop, in time of one CPU, or of the clock where a GPU works; measured anew each time."""
    counted = {"updates": np.asarray(updates), "batch": np.asarray(batch)}
    return LIGHTLY.measure(rows | counted, "images_per_s")

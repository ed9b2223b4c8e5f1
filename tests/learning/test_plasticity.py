"""Units that sleep are found where they were put to sleep, and a step is as long as it is."""

import numpy as np
import pytest
import torch
from torch import nn

from learning import encoders
from learning.config import EncoderConfig, GruConfig, LinearRecurrenceConfig
from learning.config_images import TimmConfig
from learning.kinds.events import subset
from learning.plasticity import Step, _Seen, dormant, norm
from schemas.records import Windows
from schemas.stream import Shape
from tests.learning.images import SHAPE as IMAGES
from tests.learning.images import noise, windows_of
from tests.learning.streams import random_windows

SHAPE = Shape(2, 1)
SMALL = {"dim": 8, "hidden": 10, "window": 12, "category_dim": 4, "bucket_bits": 4}


def events() -> Windows:
    return random_windows(np.random.default_rng(0), 30, SHAPE)


def test_a_gru_unit_that_never_opens_sleeps() -> None:
    encoder = encoders.build(GruConfig(**SMALL), SHAPE)
    assert dormant(encoder, events()) == {"gru": 0.0}
    (gru,) = encoder.layers  # type: ignore[attr-defined]
    with torch.no_grad():
        for name, weight in gru.named_parameters():  # its new state is 0: what it could become
            if name.startswith(("weight", "bias")):
                weight[20:23] = 0.0
    encoder.train()
    assert dormant(encoder, events()) == {"gru": pytest.approx(0.3)}
    assert encoder.training, "left as it was"


def test_of_no_windows_nothing_is_said() -> None:
    none = subset(events(), np.zeros(0, np.int64))
    assert dormant(encoders.build(GruConfig(**SMALL), SHAPE), none) == {}


def test_a_convolutions_units_are_its_channels() -> None:
    with _Seen() as seen:
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5), nn.GELU()
        )
        with torch.no_grad():
            net[0].weight[:2], net[0].bias[:2] = 0.0, -1.0  # type: ignore[index]
        net(torch.randn(4, 3, 8, 8))
    (relu,), (gelu,) = seen.found["relu"], seen.found["gelu"]
    assert relu.shape == (6,) and gelu.shape == (5,)
    assert (relu[:2] == 0).all() and (relu[2:] > 0).all()


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (LinearRecurrenceConfig(**SMALL), {"tanh", "silu"}),
        (TimmConfig(dim=8, size=16), {"relu"}),
        (TimmConfig(dim=8, size=16, backbone="vit_tiny_patch16_224", patch=8), {"gelu"}),
    ],
)
def test_every_encoder_has_units_that_can_be_looked_at(
    config: EncoderConfig, kinds: set[str]
) -> None:
    images = isinstance(config, TimmConfig)
    encoder = encoders.build(config, IMAGES if images else SHAPE)
    windows = windows_of(noise(np.random.default_rng(0), 4)) if images else events()
    found = dormant(encoder, windows)
    assert set(found) == kinds
    assert all(0.0 <= share < 1.0 for share in found.values())


def test_a_step_is_as_long_as_the_weights_moved() -> None:
    net = nn.Linear(4, 3)
    step = Step(net)
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert step.norm == pytest.approx(float(flat.norm())) == norm(net.parameters())
    assert step.ratio() == 0.0
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.1)
    assert step.ratio() == pytest.approx(0.1, rel=1e-4)

"""The walls hold for every family: five small objectives, and those of images that look at vectors alone, through
learn, snapshot, restore and a skipped step, on the same learner."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from learning import config_images as images
from learning.config import GruConfig, LearnerConfig, MlemConfig, ReplayConfig, VicregConfig
from learning.config_base import ObjectiveBase
from learning.contract import Needs, Objective
from learning.field_learner import FieldLearner
from learning.objectives import build
from learning.objectives.mlem import Mlem
from schemas.errors import SettingsError
from schemas.stream import Shape
from tests.learning.streams import random_windows

SHAPE = Shape(2, 1)
ENCODER = GruConfig(
    dim=8, hidden=12, window=16, category_dim=3, bucket_bits=4, variance=True, layers=2
)
CONFIG = LearnerConfig(
    batch_entities=16, min_entities=8, warmup_updates=2, replay=ReplayConfig(max_bytes=1 << 20)
)


class MaskedTokens(Objective):
    """V-JEPA style: the averaged teacher's output at hidden rows, predicted from the rest.

    arXiv:2404.08471."""

    needs = Needs(window=True, masked=0.5, teacher=True)

    def __init__(self):
        super().__init__()
        self.predictor = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12))

    def forward(self, student, teacher, batch, /):
        guess = self.predictor(student(batch.views["masked"]).h_BTD)
        truth = teacher(batch.views["window"]).h_BTD
        assert not truth.requires_grad
        hidden = batch.views["masked"]["masked_BT"]
        return (guess - truth)[hidden].abs().sum() / hidden.sum().clamp(min=1) / 12, {}


class Instances(Objective):
    """Instance discrimination against a bank of past vectors, by record. arXiv:1805.01978."""

    needs = Needs(window=True, slices=2)

    def __init__(self):
        super().__init__()
        self.register_buffer("bank", F.normalize(torch.randn(32, 8), dim=1))
        self.register_buffer("record", torch.zeros(32, dtype=torch.int64))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def forward(self, student, _teacher, batch, /):
        z_BD = student(batch.views["window"]).z_BD
        positive_BD = student(batch.views["slices"]).z_BD[::2]
        same = self.record[None] == batch.index["record_B"][:, None]
        logits = torch.cat(
            [(z_BD * positive_BD).sum(1, True), (z_BD @ self.bank.T).masked_fill(same, -1e9)], 1
        )
        target = torch.zeros(len(z_BD), dtype=torch.int64)
        update = {"z_BD": z_BD.detach(), "record_B": batch.index["record_B"]}
        return F.cross_entropy(logits / 0.1, target), update

    def apply_update(self, update):
        at = (self.next + torch.arange(len(update["z_BD"]))) % 32
        self.bank[at] = update["z_BD"]
        self.record[at] = update["record_B"]
        self.next += len(at)


class Prototypes(Objective):
    """CoReS style: the classifier is a fixed regular simplex. arXiv:2305.02956."""

    needs = Needs(window=True)

    def __init__(self):
        super().__init__()
        eye = torch.eye(9)
        simplex = eye - eye.mean(0)
        basis = torch.linalg.svd(simplex).Vh[:8]
        self.register_buffer("prototypes", F.normalize(simplex @ basis.T, dim=1))

    def forward(self, student, _teacher, batch, /):
        z_BD = student(batch.views["window"]).z_BD
        label = batch.index.get("label_B", batch.index["entity_B"] % 9)
        return F.cross_entropy(z_BD @ self.prototypes.T / 0.1, label), {}


class Hedged(Objective):
    """HIB: vectors are distributions; matching by samples of them. arXiv:1810.00319."""

    needs = Needs(slices=2, variance=True)

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, student, _teacher, batch, /):
        z_MD, _, extra = student(batch.views["slices"])
        log_variance = extra["log_variance"]
        sample = z_MD + torch.randn_like(z_MD) * torch.exp(0.5 * log_variance)
        distance = torch.cdist(sample[::2], sample[1::2])
        logits = F.softplus(self.scale) * -distance + self.offset
        prior = -0.5 * (1 + log_variance - z_MD.square() - log_variance.exp()).mean()
        match = torch.eye(len(logits))
        return F.binary_cross_entropy_with_logits(logits, match) + 1e-4 * prior, {}


def next_event() -> Objective:
    return Mlem(MlemConfig(bucket_bits=3), SHAPE, 12)


OF_IMAGES: list[ObjectiveBase] = [
    VicregConfig(expander=16),
    images.BarlowTwinsConfig(hidden=16, projection=16),
    images.SimclrConfig(hidden=16, projection=8),
    images.WMseConfig(hidden=16, projection=4, subbatch=16),
    images.ByolConfig(hidden=16, projection=8),
    images.MocoV3Config(hidden=16, projection=8),
    images.DinoConfig(hidden=16, projection=8, prototypes=32, koleo=0.1),
    images.SwavConfig(hidden=16, projection=8, prototypes=32),
    images.InstanceConfig(bank=32),
    images.SigregConfig(hidden=16, projection=8, directions=16),
    images.SscdConfig(mixed=False),
    images.CassleConfig(hidden=16, loss="contrast"),
]
FAMILIES = [
    MaskedTokens,
    next_event,
    Instances,
    Prototypes,
    Hedged,
    *(
        pytest.param(partial(build, config, ENCODER, SHAPE), id=config.__struct_config__.tag)
        for config in OF_IMAGES
    ),
]


def learner_of(make) -> FieldLearner:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = make()
    learner = FieldLearner(CONFIG, ENCODER, SHAPE, [("one", 1.0, objective)])
    if objective.needs.previous:
        learner.previous = copy.deepcopy(learner.ema)
    return learner


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    return [random_windows(rng, n, SHAPE, 16) for n in (80, 40, 40)]


def bits(learner: FieldLearner) -> dict[str, bytes]:
    return {k: np.asarray(v).tobytes() for k, v in learner.state_dict()[0].items()}


@pytest.mark.parametrize("make", FAMILIES)
def test_it_learns(make, stream):
    learner = learner_of(make)
    learner.receive(stream[0])
    losses = [learner.learn().loss for _ in range(120)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-20:]) < np.mean(losses[:20])
    assert np.isfinite(learner.evaluate().loss)


@pytest.mark.parametrize("make", FAMILIES)
def test_restored_from_files_it_continues_exactly(make, stream):
    a, b = learner_of(make), learner_of(make)
    a.receive(stream[0])
    for _ in range(4):
        a.learn()
    flat, meta = a.state_dict()
    tensors = {k: torch.as_tensor(v).contiguous() for k, v in flat.items()}
    tensors = safetensors.torch.load(safetensors.torch.save(tensors))
    b.load_state_dict(tensors, json.loads(json.dumps(meta)))
    for windows in stream[1:]:
        for learner in (a, b):
            learner.receive(windows)
        assert a.learn() == b.learn()
    assert a.evaluate() == b.evaluate()
    assert bits(a) == bits(b)


@pytest.mark.parametrize("make", FAMILIES)
def test_a_skipped_step_changes_nothing(make, stream):
    learner = learner_of(make)
    learner.receive(stream[0])
    learner.learn()
    before = bits(learner)
    objective = learner.objectives[0]
    forward = objective.forward

    def overflowing(*args):
        loss, update = forward(*args)
        return loss * float("inf"), update

    objective.forward = overflowing
    assert learner.learn().skipped == "non_finite"
    objective.forward = forward
    after = bits(learner)
    assert {k for k in before if before[k] != after[k]} <= {"replay.fresh"}


@pytest.mark.parametrize("make", FAMILIES)
def test_computing_the_loss_moves_no_state(make, stream):
    learner = learner_of(make)
    rng = np.random.default_rng(1)
    batch = learner.kind.views(stream[0], learner.needs, rng, augment=True)
    before = copy.deepcopy(learner.objectives.state_dict())
    losses, _ = learner._losses(learner.encoder, batch)
    losses[0].backward()
    for name, tensor in learner.objectives.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_what_the_encoder_lacks_is_refused():
    with pytest.raises(SettingsError, match=r"encoder\.variance"):
        FieldLearner(CONFIG, GruConfig(dim=8, hidden=12), SHAPE, [("hib", 1.0, Hedged())])


def test_what_learns_from_the_last_release_waits_for_it(stream):
    cassle = build(images.CassleConfig(hidden=16), ENCODER, SHAPE)
    learner = FieldLearner(
        CONFIG, ENCODER, SHAPE, [("hib", 1.0, Hedged()), ("cassle", 1.0, cassle)]
    )
    learner.receive(stream[0])
    assert learner.learn().objective_losses["cassle"] == 0
    learner.previous = copy.deepcopy(learner.ema)
    assert learner.learn().objective_losses["cassle"] > 0

"""The normaliser follows inputs that moved, where entities then find themselves better, and nowhere else."""

import copy

import numpy as np
import pytest
import torch

from learning.adaptation import Adapted, adapt
from learning.config import GruConfig, LearnerConfig
from learning.encoders.fields import LEAST_SCALE
from learning.field_learner import FieldLearner
from learning.held_out import mixed
from learning.learner_state import save
from learning.student import embed
from schemas.records import Rows, Windows
from schemas.stream import Shape

SHAPE = Shape(2, 1)
ENCODER = GruConfig(dim=16, hidden=16, window=16, category_dim=4, bucket_bits=6)
CONFIG = LearnerConfig(batch_entities=32, min_entities=8, held_out_share=0.1, warmup_updates=5)
ENTITIES, ROWS = 800, 16


def amounts(day: int, scale: float = 1.0, offset: float = 0.0) -> Windows:
    """A window of each entity, whose numbers lie around what is its own."""
    own = np.random.default_rng(7).normal(size=(ENTITIES, SHAPE.numbers))
    rng = np.random.default_rng(day)
    n = ENTITIES * ROWS
    numbers = np.repeat(own, ROWS, 0) + 0.15 * rng.normal(size=(n, SHAPE.numbers))
    start_us = (1000 + day) * 10**12
    rows = Rows(
        start_us + np.tile(np.arange(ROWS) * 10**7, ENTITIES),
        np.arange(n),
        (scale * numbers + offset).astype(np.float32),
        rng.integers(0, 5, (n, SHAPE.categories)),
        np.zeros((n, SHAPE.categories), np.bool_),
    )
    totals = np.zeros((ENTITIES, SHAPE.totals))
    totals[:, 1] = 1.0
    first_us = np.full(ENTITIES, start_us)
    return Windows(rows, np.arange(ENTITIES + 1) * ROWS, totals, first_us, mixed(np.arange(ENTITIES)))  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> FieldLearner:
    learner = FieldLearner(CONFIG, ENCODER, SHAPE)
    learner.receive(amounts(0))
    for _ in range(80):
        learner.learn()
    return learner


@pytest.fixture
def learner(trained: FieldLearner) -> FieldLearner:
    return copy.deepcopy(trained)


def test_where_numbers_have_moved_it_follows_and_is_found_better(learner: FieldLearner) -> None:
    learner.receive(amounts(1, scale=10.0, offset=30.0))
    weight = learner.ema.fields.project.weight.clone()
    found = adapt(learner)
    assert found.kept
    assert found.after > found.before
    mean, scale = learner.moments.mean_and_scale()
    for fields in (learner.encoder.fields, learner.ema.fields):
        torch.testing.assert_close(fields.mean, mean)
        torch.testing.assert_close(fields.scale, scale.clamp(min=LEAST_SCALE))
    assert torch.equal(learner.ema.fields.project.weight, weight), "the weights stay"
    assert adapt(learner) == Adapted(kept=False, before=found.after, after=found.after)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_where_it_does_not_help_nothing_changes(learner: FieldLearner, scale: float) -> None:
    """Nothing has moved; or what has moved told entities apart better than before."""
    learner.receive(amounts(1, scale=scale))
    before = save(learner)[0]
    assert not adapt(learner).kept
    after = save(learner)[0]
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert np.array_equal(np.asarray(value), np.asarray(after[name]), equal_nan=True), name


def test_it_goes_on_learning_from_there(learner: FieldLearner) -> None:
    """The next change of mean and scale is folded into the weights, as ever: the function stays."""
    learner.receive(amounts(1, scale=10.0, offset=30.0))
    assert adapt(learner).kept
    some = learner.windows(64, held=True)
    before = embed(learner.ema, some)
    learner._renormalise()
    torch.testing.assert_close(embed(learner.ema, some), before, atol=1e-4, rtol=0.0)
    step = learner.learn()
    assert step is not None
    assert not step.skipped


def test_too_few_entities_judge_nothing() -> None:
    learner = FieldLearner(CONFIG, ENCODER, SHAPE)
    assert adapt(learner).kept is False

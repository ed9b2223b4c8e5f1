import json

import numpy as np
import pytest
import safetensors.torch
import torch

from learning.config import (
    BagConfig,
    ColesConfig,
    GruConfig,
    LearnerConfig,
    LinearRecurrenceConfig,
    MlemConfig,
    ReplayConfig,
    VicregConfig,
)
from learning.field_learner import FieldLearner
from learning.held_out import held_out
from learning.kinds.events import subset
from learning.learner import due_updates
from learning.running import Admission
from schemas.errors import SettingsError, SnapshotError
from schemas.records import Rows, Windows
from schemas.stream import Shape
from tests.learning.streams import random_windows

SHAPE = Shape(2, 1)
SMALL = {"dim": 8, "hidden": 12, "window": 16, "category_dim": 3, "bucket_bits": 5}
ENCODERS = [GruConfig(**SMALL), LinearRecurrenceConfig(**SMALL)]
ALL = (
    ColesConfig(slices=3),
    VicregConfig(slices=3, expander=16),
    BagConfig(slices=3, bucket_bits=3),
    MlemConfig(bucket_bits=3),
)
CONFIG = LearnerConfig(
    objective=ALL,
    batch_entities=16,
    min_entities=8,
    warmup_updates=3,
    replay=ReplayConfig(max_bytes=1 << 20),
)


@pytest.fixture(scope="module")
def stream() -> list[Windows]:
    rng = np.random.default_rng(0)
    return [random_windows(rng, 40, SHAPE, 16) for _ in range(4)]


def bits(learner: FieldLearner) -> dict[str, bytes]:
    flat, _ = learner.state_dict()
    return {k: np.asarray(v).tobytes() for k, v in flat.items()}


def through_files(flat, meta):
    tensors = {k: torch.as_tensor(v).contiguous() for k, v in flat.items()}
    return safetensors.torch.load(safetensors.torch.save(tensors)), json.loads(json.dumps(meta))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_restored_learner_continues_exactly(encoder, stream):
    a = FieldLearner(CONFIG, encoder, SHAPE)
    a.receive(stream[0])
    for _ in range(6):
        assert a.learn().skipped == ""
    a.receive(stream[1])
    b = FieldLearner(CONFIG, encoder, SHAPE)
    b.load_state_dict(*through_files(*a.state_dict()))
    assert bits(a) == bits(b)
    for windows in stream[2:]:
        for learner in (a, b):
            learner.receive(windows)
        for _ in range(4):
            assert a.learn() == b.learn()
    assert a.evaluate() == b.evaluate()
    assert bits(a) == bits(b)
    assert a.state_dict()[1] == b.state_dict()[1]


def test_the_same_seed_and_windows_give_the_same_learner(stream):
    learners = [FieldLearner(CONFIG, ENCODERS[0], SHAPE) for _ in range(2)]
    for learner in learners:
        torch.manual_seed(id(learner) % 1000)  # the surroundings' generator does not matter
        for windows in stream:
            learner.receive(windows)
            learner.learn()
    assert bits(learners[0]) == bits(learners[1])


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(stream):
    learner = FieldLearner(CONFIG, ENCODERS[0], SHAPE)
    learner.receive(stream[0])
    learner.learn()
    before = bits(learner)
    with torch.no_grad():
        kept = learner.encoder.out.weight.clone()
        learner.encoder.out.weight[0, 0] = float("nan")
    assert learner.learn().skipped == "non_finite"
    with torch.no_grad():
        learner.encoder.out.weight.copy_(kept)
    after = bits(learner)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"replay.fresh"}  # the batch was taken, or it would come again
    assert learner.skipped == {"non_finite": 1}
    assert learner.learn().skipped == ""


def test_too_few_entities_are_waited_for(stream):
    learner = FieldLearner(CONFIG, ENCODERS[0], SHAPE)
    assert learner.learn() is None
    learner.receive(subset(stream[0], np.arange(5)))
    assert learner.learn() is None
    assert learner.evaluate().entities <= 5


def test_held_out_entities_are_never_in_replay():
    rng = np.random.default_rng(3)
    config = LearnerConfig(held_out_share=0.02, held_out_entities=20, min_entities=8)
    learner = FieldLearner(config, ENCODERS[0], Shape(0, 1))
    for _ in range(6):
        n = 150
        entity = rng.integers(-(2**63), 2**63 - 1, n)
        learner.receive(
            Windows(
                Rows.empty(Shape(0, 1), n), np.arange(n + 1), np.eye(1, 2, 1).repeat(n, 0),
                np.zeros(n, np.int64), entity,
            )
        )  # fmt: skip
        assert not held_out(learner.replay.owners(), learner.share).any()
        assert held_out(learner.held.owners(), learner.share).all()
    assert 0.02 <= learner.share < 0.1
    assert learner.evaluate().entities == len(learner.held)


def test_what_is_released_are_the_averaged_weights(stream):
    learner = FieldLearner(CONFIG, ENCODERS[0], SHAPE)
    learner.receive(stream[0])
    for _ in range(5):
        learner.learn()
    released = learner.released()
    for mine, averaged in zip(released.parameters(), learner.ema.parameters(), strict=True):
        assert torch.equal(mine, averaged)
    assert not torch.equal(released.out.weight, learner.encoder.out.weight)


def test_forgotten_entities_are_gone(stream):
    learner = FieldLearner(CONFIG, ENCODERS[0], SHAPE)
    learner.receive(stream[0])
    learner.forget(stream[0].entity[:30])
    kept = {*learner.replay.owners().tolist(), *learner.held.owners().tolist()}
    assert kept == set(stream[0].entity[30:].tolist())


def test_a_snapshot_of_another_encoder_is_refused(stream):
    learner = FieldLearner(CONFIG, ENCODERS[0], SHAPE)
    other = FieldLearner(CONFIG, ENCODERS[1], SHAPE)
    with pytest.raises(SnapshotError, match="encoder"):
        other.load_state_dict(*learner.state_dict())


def test_buckets_are_admitted_when_seen_often_and_leave_when_unseen():
    admission = Admission(GruConfig(**SMALL, admit_after=3, forget_after=10), Shape(0, 1))
    there = np.zeros((1, 1), np.bool_)
    for _ in range(2):
        admission.add(np.array([[5]]), there)
    assert admission.settle()[0].tolist() == []
    admission.add(np.array([[5 + 32]]), there)  # same bucket
    assert admission.settle()[0].tolist() == [5]
    assert admission.mask()[5]
    assert not admission.mask()[32:].any()
    admission.add(np.full((11, 1), 6), np.zeros((11, 1), np.bool_))
    assert admission.settle()[0].tolist() == [6]
    assert not admission.mask()[5]
    admission.add(np.full((3, 1), 5), np.zeros((3, 1), np.bool_))
    assert admission.settle()[0].tolist() == [5]


def test_a_readmitted_bucket_starts_anew(stream):
    learner = FieldLearner(CONFIG, ENCODERS[0], SHAPE)
    learner.receive(stream[0])
    for _ in range(3):
        learner.learn()
    table = learner.encoder.fields.embedding.weight
    at = int(np.flatnonzero(learner.admission.admitted[0])[0])
    row, moment = table[at].clone(), learner.optimizer.state[table]["exp_avg"]
    moment[at] = 1.0
    learner.admission.admitted[0, at] = False
    learner._admit()
    assert not torch.equal(table[at], row)
    assert (moment[at] == 0).all()
    assert torch.equal(table[at], learner.ema.fields.embedding.weight[at])


def test_updates_follow_records_within_the_share_of_the_cpu():
    config = LearnerConfig(updates_per_record=0.1, cpu_share=0.5)
    assert due_updates(95, 4, 1.0, 10.0, config) == 5
    assert due_updates(95, 9, 1.0, 10.0, config) == 0
    assert due_updates(95, 4, 6.0, 10.0, config) == 0


def test_impossible_settings_are_refused():
    with pytest.raises(SettingsError, match=r"encoder\.window"):
        GruConfig(window=7)
    with pytest.raises(SettingsError, match=r"learner\.objective"):
        LearnerConfig(objective=())
    with pytest.raises(SettingsError, match="slices"):
        LearnerConfig(objective=(ColesConfig(slices=2), VicregConfig(slices=4)))
    assert LearnerConfig(enabled=False, objective=()).objective == ()

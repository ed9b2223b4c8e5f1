import json

import numpy as np
import pytest
import safetensors.torch
import torch

from learning.config import CassleConfig, LearnerConfig, ReplayConfig, VicregConfig
from learning.config_images import DinoConfig, GmmlConfig, ImageViews, InstanceConfig, TimmConfig
from learning.held_out import held_out
from learning.image_learner import ImageLearner
from learning.student import embed
from schemas.errors import SettingsError
from schemas.records import Windows, category_hash
from tests.learning.images import SHAPE, SIDE, noise, textures, windows_of

ENCODER = TimmConfig(dim=8, size=SIDE, width=0.125, stem="small")
VIT = TimmConfig(dim=8, size=SIDE, backbone="test_vit", patch=4)
VICREG = VicregConfig(expander=16)


def config(*objectives, **changes) -> LearnerConfig:
    defaults = {
        "batch_entities": 8,
        "min_entities": 8,
        "warmup_updates": 3,
        "learning_rate": 1e-3,
        "replay": ReplayConfig(max_bytes=1 << 17, policy=changes.pop("policy", "stratified")),
    }
    return LearnerConfig(objective=objectives or (VICREG,), **{**defaults, **changes})


@pytest.fixture(scope="module")
def stream() -> list[Windows]:
    rng = np.random.default_rng(0)
    parts = [windows_of(noise(rng, 30)) for _ in range(3)]
    for i, part in enumerate(parts):
        part.entity[:] = [category_hash(f"{i}-{j % 25}") for j in range(30)]
        part.rows.position[:] = np.arange(30) + 30 * i
    return parts


def bits(learner: ImageLearner) -> dict[str, bytes]:
    flat, _ = learner.state_dict()
    return {k: np.ascontiguousarray(np.asarray(v)).tobytes() for k, v in flat.items()}


def through_files(flat, meta):
    tensors = {k: torch.as_tensor(np.asarray(v)).contiguous() for k, v in flat.items()}
    return safetensors.torch.load(safetensors.torch.save(tensors)), json.loads(json.dumps(meta))


@pytest.mark.parametrize(
    ("encoder", "objectives", "policy"),
    [
        (ENCODER, (VICREG, CassleConfig(hidden=8)), "stratified"),
        (ENCODER, (InstanceConfig(bank=64),), "fifo"),
        (
            VIT,
            (DinoConfig(prototypes=16, hidden=16, projection=8, small=2, patches=0.4),),
            "minred",
        ),
        (VIT, (GmmlConfig(hidden=8, pixels=2),), "balanced"),
    ],
)
def test_a_restored_learner_continues_exactly(encoder, objectives, policy, stream):
    settings = config(*objectives, policy=policy)
    a = ImageLearner(settings, encoder, SHAPE)
    a.receive(stream[0])
    for _ in range(3):
        assert a.learn().skipped == ""
    a.mark_released()
    a.learn()
    a.receive(stream[1])
    b = ImageLearner(settings, encoder, SHAPE)
    b.load_state_dict(*through_files(*a.state_dict()))
    assert bits(a) == bits(b)
    for learner in (a, b):
        learner.receive(stream[2])
    for _ in range(3):
        assert a.learn() == b.learn()
    assert a.evaluate() == b.evaluate()
    assert bits(a) == bits(b)
    assert a.state_dict()[1] == b.state_dict()[1]


def test_the_same_stream_makes_the_same_learner(stream):
    learners = [ImageLearner(config(), ENCODER, SHAPE) for _ in range(2)]
    for learner in learners:
        learner.receive(stream[0])
        for _ in range(3):
            learner.learn()
    assert bits(learners[0]) == bits(learners[1])


def test_held_out_entities_are_never_learnt_from(stream):
    learner = ImageLearner(config(), ENCODER, SHAPE)
    for windows in stream:
        learner.receive(windows)
        for _ in range(4):
            learner.learn()
    apart = held_out(np.concatenate([w.entity for w in stream]), learner.share)
    assert apart.any()
    assert not held_out(learner.replay.owners(), learner.share).any()
    assert held_out(learner.held.owners(), learner.share).all() and len(learner.held) > 0


def test_deleted_entities_are_learnt_from_no_more(stream):
    learner = ImageLearner(config(held_out_share=0.0), ENCODER, SHAPE)
    learner.receive(stream[0])
    gone = stream[0].entity[:5]
    learner.forget(gone)
    assert not np.isin(learner.replay.owners(), gone).any()
    assert not np.isin(learner.windows(100, held=False).entity, gone).any()


def test_nothing_is_learnt_before_there_are_enough_images(stream):
    learner = ImageLearner(config(min_entities=40), ENCODER, SHAPE)
    learner.receive(stream[0])
    assert learner.learn() is None
    learner.receive(stream[1])
    assert learner.learn() is not None


def test_images_of_one_entity_alone_are_learnt_from():
    windows = windows_of(noise(np.random.default_rng(0), 20), entity=np.full(20, 7))
    learner = ImageLearner(
        config(held_out_share=0.0, replay=ReplayConfig(per_entity=64)), ENCODER, SHAPE
    )
    learner.receive(windows)
    assert learner.learn().sequences == 8


def test_a_step_that_is_not_finite_changes_nothing_but_what_counts_it(stream):
    learner = ImageLearner(config(policy="minred"), ENCODER, SHAPE)
    learner.receive(stream[0])
    learner.learn()
    learner.weights = [float("nan")]
    before = bits(learner)
    assert learner.learn().skipped == "non_finite"
    changed = {k for k, v in bits(learner).items() if v != before[k]}
    assert changed <= {"replay.fresh"}


def test_the_replay_knows_the_vectors_of_what_was_learnt_from(stream):
    learner = ImageLearner(config(held_out_share=0.0, policy="minred"), ENCODER, SHAPE)
    learner.receive(stream[0])
    learner.learn()
    z_ND = learner.replay._vector[learner._drawn].astype(np.float32)
    assert np.allclose(np.linalg.norm(z_ND, axis=1), 1.0, atol=1e-2)
    rest = np.setdiff1d(learner.replay.live, learner._drawn)
    assert not learner.replay._vector[rest].any()


def test_what_was_released_is_the_teacher_of_those_that_ask_for_it(stream):
    settings = config(VICREG, CassleConfig(hidden=8), held_out_share=0.0)
    learner = ImageLearner(settings, ENCODER, SHAPE)
    learner.receive(stream[0])
    assert learner.learn().objective_losses["cassle"] == 0.0
    learner.mark_released()
    frozen = {k: v.clone() for k, v in learner.previous.state_dict().items()}
    losses = [learner.learn().objective_losses["cassle"] for _ in range(3)]
    assert all(loss > 0 for loss in losses)
    assert all(torch.equal(v, frozen[k]) for k, v in learner.previous.state_dict().items())
    assert not torch.equal(learner.ema.out.weight, learner.previous.out.weight)


def test_no_copy_is_kept_where_nobody_asks_for_it(stream):
    learner = ImageLearner(config(), ENCODER, SHAPE)
    learner.mark_released()
    assert learner.previous is None


def test_hidden_patches_need_more_than_one():
    with pytest.raises(SettingsError, match="its last map has one place"):
        ImageLearner(
            config(GmmlConfig()), TimmConfig(dim=8, size=SIDE, width=0.125, stem="half"), SHAPE
        )


def neighbours_agree(encoder, windows: Windows, label: np.ndarray, k: int = 5) -> float:
    """Share of images whose k nearest ones are mostly of their class."""
    z = embed(encoder, windows).numpy()
    like = z @ z.T - 3 * np.eye(len(z))
    near = label[np.argsort(-like, axis=1)[:, :k]]
    votes = np.stack([(near == c).sum(1) for c in range(3)], 1)
    return float((votes.argmax(1) == label).mean())


def test_it_learns():
    """Stripes, checks and discs of any colour: after a few hundred steps neighbours are of one kind."""
    rng = np.random.default_rng(0)
    made, _ = textures(rng, 600)
    test, label = textures(rng, 300)
    learner = ImageLearner(
        LearnerConfig(
            objective=(VicregConfig(expander=128),),
            batch_entities=64,
            learning_rate=2e-3,
            warmup_updates=20,
            held_out_share=0.0,
            ema_decay=0.98,
            views=ImageViews(scale=(0.4, 1.0), hue=0.5, grey=0.3, brightness=0.6, contrast=0.6),
        ),
        TimmConfig(dim=16, size=SIDE, width=0.25, stem="half"),
        SHAPE,
    )
    learner.receive(windows_of(made))
    before = neighbours_agree(learner.released(), windows_of(test), label)
    for _ in range(200):
        learner.learn()
    after = neighbours_agree(learner.released(), windows_of(test), label)
    assert after > max(0.7, before + 0.2), (before, after)

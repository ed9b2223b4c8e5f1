import numpy as np
import torch

from learning.compatibility import untrained_vectors
from learning.config import GruConfig, LearnerConfig
from learning.field_learner import FieldLearner
from learning.student import embed
from schemas.stream import Shape
from tests.learning.streams import random_windows

SHAPE = Shape(2, 1)
SMALL = GruConfig(dim=8, hidden=12, window=16, category_dim=3, bucket_bits=5)


def test_untrained_vectors_know_the_data_but_saw_no_update():
    windows = random_windows(np.random.default_rng(0), 300, SHAPE, 16)
    a, b = (untrained_vectors(SMALL, SHAPE, windows, seed) for seed in (0, 1))
    assert a.shape == (300, 8)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(a, untrained_vectors(SMALL, SHAPE, windows, 0))
    assert not np.allclose(a, b)


def test_prepare_is_what_comes_before_the_first_update():
    windows = random_windows(np.random.default_rng(0), 80, SHAPE, 16)
    config = LearnerConfig(min_entities=2, ema_decay=0.0, learning_rate=1e-12, weight_decay=0.0)
    learners = [FieldLearner(config, SMALL, SHAPE) for _ in range(2)]
    for learner in learners:
        learner.receive(windows)
    learners[0].prepare()
    assert learners[0].updates == 0
    assert learners[0].admission.admitted.any()
    learners[1].learn()
    z = [embed(learner.ema, windows) for learner in learners]
    torch.testing.assert_close(z[0], z[1], atol=1e-4, rtol=0)

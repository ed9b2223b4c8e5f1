"""A representation that collapses in training is refused by name, and readers keep what they have."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
import redis
import safetensors.numpy

from actors.candidate import ReleaseConfig
from actors.folders import Folder, write_folder
from actors.labels import KNOWN_FILE
from actors.learn import Learn
from actors.publish import Publish
from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from actors.requests import SNAPSHOT, ask_learner
from actors.served import current_release
from learning.config import LearnerConfig, VicregConfig
from schemas.published import Manifest, current_key
from tests.learning.streams import random_windows
from tests.services import ENCODER, STREAM

WINDOWS = random_windows(np.random.default_rng(0), 450, STREAM.shape, ENCODER.window)
WITHOUT_VARIANCE = VicregConfig(variance=1e-9, covariance=1e-9)
UPDATES = 50


class Trained:
    """A learner of VICReg and the publisher that watches it, on one state folder."""

    def __init__(self, root: Path, url: str) -> None:
        self.root, self._position, self._epoch = root, 0, 0
        sink = RedisSink(RedisConfig(url=url), root.name)
        self.sink, self.publish = sink, Publish(root, STREAM, ENCODER, ReleaseConfig(), sink, 1)
        self.publish.oldest_release = 0

    def train(self, objective: VicregConfig) -> None:
        """So many updates, a snapshot, and what the publisher makes of it."""
        config = LearnerConfig(
            objective=(objective,), batch_entities=16, min_entities=8, learning_rate=0.02, cpu_share=1.0,
            updates_per_record=100.0, warmup_updates=2, ema_decay=0.9,
        )  # fmt: skip
        self._epoch, self._position = self._epoch + 1, self._position + 1
        folder = self.root / "learner"
        learner = Learn(config, ENCODER, STREAM.shape, folder, self._epoch, ReleaseConfig())
        learner.offer([(0, [self._position], WINDOWS)])
        made = learner.stats().updates
        while learner.stats().updates < made + UPDATES:
            learner.turn()
        ask_learner(folder, SNAPSHOT)
        learner.turn()
        for _ in range(2):  # one releases, the next one tells Redis
            self.publish.turn()

    def gates(self, folder: str) -> dict[str, bool]:
        """What a release had to pass, and whether it did."""
        meta = Folder.open(self.root / "releases" / folder).meta
        return {gate.name: gate.ok for gate in msgspec.convert(meta, Manifest).gates}


@pytest.fixture
def trained(tmp_path: Path, stream: str, redis_server: str) -> Iterator[Trained]:
    made = Trained(tmp_path / stream, redis_server)
    with closing(made.sink):
        yield made


def test_a_collapse_in_training_is_gated_and_never_released(
    trained: Trained, database: redis.Redis, stream: str
) -> None:
    """The variance term is taken away from a learner that goes on."""
    trained.train(VicregConfig())
    assert database.hget(current_key(stream), "release") == b"1"
    vectors = (trained.root / "releases" / "1" / "encode.onnx").read_bytes()
    for attempt in (2, 3):
        trained.train(WITHOUT_VARIANCE)
        assert trained.publish.stats().refused["spread"] == attempt - 1
        gates = trained.gates(f"refused/{attempt}")
        assert not gates["spread"]
        assert gates["parity"], "it is whole, but nothing is left in it"
    assert current_release(trained.root / "releases") == 1
    assert database.hget(current_key(stream), "release") == b"1"
    assert (trained.root / "releases" / "1" / "encode.onnx").read_bytes() == vectors


def test_where_there_are_labels_a_release_must_foretell_them_too(trained: Trained) -> None:
    entity = WINDOWS.entity.astype(np.int64)
    columns = {"entity": entity, "label": entity % 2, "time_us": entity * 0}
    file = KNOWN_FILE, safetensors.numpy.save(columns)
    trained.train(VicregConfig())
    assert "probe" not in trained.gates("1")
    write_folder(trained.root / "labels", "1-1", [file], dict)
    trained.train(VicregConfig())
    assert trained.gates("2")["probe"]

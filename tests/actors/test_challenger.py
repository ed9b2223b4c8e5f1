"""Where a learner can learn no more another one begins beside it, and takes its place if its release passes."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from actors.challenger import LOOK_S
from actors.encode import Release
from actors.folders import Folder, folders
from actors.learn import Learn
from actors.publish import Publish
from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from learning.config import ChallengerConfig
from tests.actors.test_learn import CONFIG, RELEASE, SHAPE, FakeClock, part
from tests.services import ENCODER, STREAM

UPDATES = 5


class Lab:
    """A learner whose units count as dormant, and the publisher of its snapshots."""

    def __init__(self, root: Path, url: str) -> None:
        self.root, self.clock = root, FakeClock()
        sink = RedisSink(RedisConfig(url=url), root.name)
        self.publish = Publish(root, STREAM, ENCODER, RELEASE, sink, 1)
        self.publish.oldest_release = 0
        self.learn = self.learner()
        self.learn.offer([part(5, entities=900)])

    def learner(self, epoch: int = 1) -> Learn:
        eager = ChallengerConfig(dormant=1e-9, updates=UPDATES)
        config = msgspec.structs.replace(CONFIG, challenger=eager, queue_bytes=1 << 24)
        folder = self.root / "learner"
        return Learn(config, ENCODER, SHAPE, folder, epoch, RELEASE, self.clock)

    def turns(self, n: int) -> None:
        for _ in range(n):
            self.learn.turn()

    def snapshot(self) -> None:
        self.turns(RELEASE.every_updates)
        self.clock.now += RELEASE.every_s
        self.turns(1)

    def released(self) -> None:
        self.publish.turn()
        self.clock.now += LOOK_S
        self.turns(1)


@pytest.fixture
def lab(tmp_path: Path, stream: str, redis_server: str, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr("actors.watching.dormant", lambda *_: {"gru": 0.9})
    return Lab(tmp_path / stream, redis_server)


def weights(learn: Learn) -> dict[str, torch.Tensor]:
    return learn._learner.encoder.state_dict()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


def test_it_learns_beside_and_takes_the_place_of_the_first(lab: Lab) -> None:
    lab.snapshot()
    lab.released()
    champion, challenger = lab.learn._learner, lab.learn._challenge.learner
    assert challenger is not None and challenger is not champion
    assert challenger.replay is champion.replay, "what is remembered is there once"
    lab.turns(UPDATES)
    assert lab.learn.stats().challenger_updates == UPDATES
    lab.turns(3)
    assert lab.learn.stats().challenger_updates == UPDATES, "then it waits"
    before = champion.updates
    lab.snapshot()
    assert Folder.open(folders(lab.root / "learner")[0]).meta["challenger"]
    offered = lab.learn.stats().snapshot
    assert same(lab.learn._watching._ages[offered]._encoder, challenger.ema), "what may be served"
    assert lab.learn._learner is champion, "nobody has said yet that it passes"
    lab.released()
    assert lab.learn._learner is challenger
    assert challenger.updates > before, "updates are counted on"
    assert lab.learn.stats().challengers == {"won": 1}
    manifest = Release.load(lab.root / "releases" / "2").manifest
    assert manifest.updates >= before
    again = lab.learner(epoch=2)
    for name, value in weights(lab.learn).items():
        np.testing.assert_array_equal(weights(again)[name], value, err_msg=name)


def test_one_that_is_worse_is_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to find entities at least as well: a tenth less, as a release of the first may, is too little."""
    lab.snapshot()
    lab.released()
    champion = lab.learn._learner
    lab.turns(UPDATES)
    lab.snapshot()
    found = iter([0.85, 0.9])
    monkeypatch.setattr("learning.quality.retrieval", lambda *_: next(found))
    lab.released()
    assert lab.learn._learner is champion
    assert lab.learn.stats().challengers == {"lost": 1}
    refused = Folder.open(lab.root / "releases" / "refused" / "2").meta
    assert [g["name"] for g in refused["gates"] if not g["ok"]] == ["retrieval"]


def test_without_dormant_units_there_is_none(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.watching.dormant", lambda *_: {"gru": 0.0})
    lab.snapshot()
    assert lab.learn._challenge.learner is None

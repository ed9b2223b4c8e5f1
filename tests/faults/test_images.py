"""Images on four partitions: whatever dies, each counts once, and a vector is that of its entity's newest images."""

import random
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from actors.served import current_release, read_release
from benchmarks.faults import poison, processes
from benchmarks.faults.outcome import Outcome, state_differs
from benchmarks.faults.service import Service, service, until
from benchmarks.faults.streams import image
from examples.encode_image_alone import TOLERANCE
from examples.encode_image_alone import compare as compared_alone
from schemas.published import IMAGES_RULE, OF_IMAGES
from tests.faults.conftest import MINE, Lab, crashed

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
FAULTS: dict[str, Callable[[Service, int, int], Outcome]] = {
    "a shard is killed": partial(processes.kill_actor, what="ShardProcess"),
    "the learner is killed": partial(processes.kill_actor, what="LearnProcess"),
    "the daemon is killed": processes.kill_driver,
    "1% poison": poison.poisoned,
}


@pytest.fixture(scope="module")
def images(lab: Lab) -> Iterator[Service]:
    with service(lab.folder / "images", lab.kafka, lab.redis, topic="images", kind="images") as of:
        yield of


@pytest.mark.parametrize("fault", FAULTS)
def test_each_image_counts_once(images: Service, fault: str) -> None:
    outcome = FAULTS[fault](images, 1, len(fault))
    assert outcome.ok, outcome


def test_an_image_that_kills_the_decoder_does_so_twice_at_most(images: Service) -> None:
    crashed(images, image(random.Random(0)) + MINE.encode())


def test_whoever_has_the_images_alone_gets_the_same_vectors(images: Service) -> None:
    """By examples/encode_image_alone.py, from files to the daemon's vector."""
    until(images.settled, 60, images)
    manifest, _ = read_release(
        images.settings.releases / str(current_release(images.settings.releases))
    )
    assert (manifest.anchor, manifest.pixels, manifest.step) == (OF_IMAGES, IMAGES_RULE, ())
    client, name = images.reader._redis, images.settings.name
    for who in sorted(images.counts)[:5]:
        files = [value for key, value in images.sent if key.decode() == who]
        assert compared_alone(client, name, who, files) < TOLERANCE


def test_what_is_snapshotted_is_what_was_sent(images: Service) -> None:
    assert images.stop() == 0
    assert state_differs(images) == []

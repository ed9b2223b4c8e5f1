"""What the first release waits for is said with the key that changes it."""

import re

import pytest

from actors.candidate import ReleaseConfig
from daemon.totals import Snapshot, Totals, no_release
from learning.config import LearnerConfig
from schemas.stats import GroupStats, LearnerStats, PublisherStats, ShardStats


@pytest.mark.parametrize(
    ("learner", "refused", "why"),
    [
        (None, {}, "has 0 windows.*64 entities.*learner.min_entities"),
        (LearnerStats(received=40), {}, "has 40 windows"),
        (LearnerStats(updates=18), {}, "18 of its 20 updates.*0.03 for each record"),
        (LearnerStats(updates=20), {}, "release.first_s = 30 s"),
        (LearnerStats(updates=20, snapshot="1-1"), {}, "exported and checked"),
        (LearnerStats(updates=40, snapshot="1-2"), {"parity": 1}, r"refused \(parity\)"),
    ],
)
def test_it_says_what_the_first_release_waits_for(
    learner: LearnerStats | None, refused: dict[str, int], why: str
) -> None:
    known = Snapshot("orders", learner=learner, publisher=PublisherStats(refused=refused))
    told = no_release(known, LearnerConfig(), ReleaseConfig())
    assert told.startswith("there is no release yet")
    assert re.search(why, told), told


def test_what_was_asked_for_is_counted_over_restarts() -> None:
    """Commands wait for that count to rise."""
    totals = Totals()
    totals.update("publisher", PublisherStats(requests=2), started_anew=False)
    totals.update("publisher", PublisherStats(requests=1), started_anew=True)
    assert totals.get("publisher").requests == 3


def test_what_a_process_that_ended_had_filled_its_successor_has_yet_to_look_at() -> None:
    totals = Totals()
    full = GroupStats(0, "serving", release=1, filled=2)
    totals.update("shard-0", ShardStats(groups=[full]), started_anew=False)
    totals.update("shard-0", ShardStats(), started_anew=True)
    (group,) = totals.get("shard-0").groups
    assert (group.phase, group.filled) == ("starting", 0)

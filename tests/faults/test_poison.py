"""Records that cannot be used, and one that kills the process which decodes it, stop nothing."""

import msgspec
import pytest

from benchmarks.faults.outcome import Outcome, compare, letters
from benchmarks.faults.poison import poisoned
from benchmarks.faults.service import Service, until
from tests.faults.conftest import MINE

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def restarts(of: Service) -> int:
    found = of.status().get("restarts", {})
    return sum(n for name, n in found.items() if name.startswith("shard"))


def test_of_a_hundred_records_one_is_poison(of: Service) -> None:
    before = restarts(of)
    outcome = poisoned(of, 1, seed=1)
    assert outcome.ok, outcome
    assert len(of.bad) == 24 and restarts(of) == before


def test_a_record_that_kills_the_decoder_does_so_twice_at_most(of: Service) -> None:
    before = restarts(of)
    of.send(200)
    at = {"who": "e1", "at": 1_600_000_000, "id": 1, "amount": 1.0, "what": MINE}
    of.send_bad(msgspec.json.encode(at))
    of.send(200)
    with of.watched():
        until(of.settled, 200, of)
        until(lambda: letters(of) >= of.bad, 60, of)
    outcome = compare(of, Outcome("a crash in the decoder", 1))
    assert outcome.ok, outcome
    assert restarts(of) - before == 2
    assert of.said("record_set_aside")
    until(lambda: counted(of) == 1, 30, of)


def counted(of: Service) -> int:
    shards = of.status().get("shards", {}).values()
    return sum(shard["dead_letters"].get("crashes_decoder", 0) for shard in shards)

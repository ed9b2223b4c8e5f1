"""Records that cannot be used, and one that kills the process which decodes it, stop nothing."""

import msgspec
import pytest

from benchmarks.faults.poison import poisoned
from benchmarks.faults.service import Service
from tests.faults.conftest import MINE, crashed, restarts

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def test_of_a_hundred_records_one_is_poison(of: Service) -> None:
    before = restarts(of)
    outcome = poisoned(of, 1, seed=1)
    assert outcome.ok, outcome
    assert len(of.bad) == 24 and restarts(of) == before


def test_a_record_that_kills_the_decoder_does_so_twice_at_most(of: Service) -> None:
    at = {"who": "e1", "at": 1_600_000_000, "id": 1, "amount": 1.0, "what": MINE}
    crashed(of, msgspec.json.encode(at))

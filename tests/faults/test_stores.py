"""Redis dies, stalls, crawls, loses its data or comes back older: the right vectors are there again."""

from collections.abc import Callable
from functools import partial

import pytest

from benchmarks.faults import stores
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.service import Service

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]
FAULTS: dict[str, Callable[[Service, int, int], Outcome]] = {
    "killed, with an append-only file": stores.killed,
    "killed, without: it comes back empty": stores.wiped,
    "emptied while it runs": stores.flushed,
    "restarted from an older dump": stores.older,
    "stalled for 2 s": partial(stores.stalled, seconds=2.0),
    "stalled for 8 s, past all timeouts": partial(stores.stalled, seconds=8.0),
    "at 1% of its speed": stores.crawling,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_redis(of: Service, fault: str) -> None:
    outcome = FAULTS[fault](of, 1, len(fault))
    assert outcome.ok, outcome

"""Where records are gone or keys have moved, going on in silence would be wrong: it stops and says what to do."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from benchmarks.faults import brokers
from benchmarks.faults.service import GROUPS, Service, until
from tests.faults.conftest import Lab

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]


@pytest.fixture
def started(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Restored and reading, before its first release."""
    folder = tmp_path_factory.mktemp("stopped")
    service = Service(folder, lab.kafka, lab.redis, topic=folder.name)
    service.start()
    with closing(service):
        service.send(200)
        until(lambda: service.snapshots() > 0, 60, service)
        yield service


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (brokers.retention_passed, "deleted by retention before they were read"),
        (brokers.partitions_added, f"has {GROUPS + 1} partitions; the stream began with {GROUPS}"),
        (brokers.topic_deleted, "does not exist"),
    ],
)
def test_it_stops_and_says_why(
    started: Service, fault: Callable[[Service], str], says: str
) -> None:
    assert says in fault(started)

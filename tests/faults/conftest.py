"""One service, on servers of its own, for all faults: each leaves it running and caught up."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.faults import disks
from benchmarks.faults.service import Service, service
from daemon import servers
from daemon.children import Server


@dataclass
class Lab:
    """Servers that a fault may stop, kill and empty."""

    folder: Path
    kafka: Server
    redis: Server
    small_disk: bool  # whether the running service's state is on a disk that can be filled


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("faults")
    with ExitStack() as stack:
        kafka = stack.enter_context(servers.kafka_server(folder / "kafka"))
        redis = stack.enter_context(servers.redis_server(folder / "redis"))
        small = stack.enter_context(disks.small_disk(folder / "service" / "state"))
        yield Lab(folder, kafka, redis, small)


@pytest.fixture(scope="package")
def of(lab: Lab) -> Iterator[Service]:
    with service(lab.folder / "service", lab.kafka, lab.redis) as found:
        yield found

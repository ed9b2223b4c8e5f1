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

MINE = "boom!"
SITE = f"""
import os, signal, sys
from importlib.machinery import PathFinder

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "actors.decode_text":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            read = module.Text.read

            def mined(self, values):
                if any(b"{MINE}" in value for value in values):
                    os.kill(os.getpid(), signal.SIGKILL)
                return read(self, values)

            module.Text.read = mined

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


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
    """Its JSON decoder dies over MINE, whichever process it runs in."""
    (lab.folder / "site").mkdir()
    (lab.folder / "site" / "sitecustomize.py").write_text(SITE)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(lab.folder / "site"))
        with service(lab.folder / "service", lab.kafka, lab.redis) as found:
            yield found

"""One service, on servers of its own, for all faults: each leaves it running and caught up."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.faults import disks
from benchmarks.faults.outcome import Outcome, compare, letters
from benchmarks.faults.service import Service, service, until
from daemon import servers
from daemon.children import Server

MINE = "boom!"
SITE = f"""
import os, signal, sys
from importlib.machinery import PathFinder

MINED = {{"actors.decode_text": ("Text", "read"), "actors.decode_images": ("ImageDecoder", "pixels")}}

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name not in MINED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            of, method = MINED[name]
            kind = getattr(module, of)
            read = getattr(kind, method)

            def mined(self, given):
                if any(b"{MINE}" in value for value in ([given] if isinstance(given, bytes) else given)):
                    os.kill(os.getpid(), signal.SIGKILL)
                return read(self, given)

            setattr(kind, method, mined)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


@dataclass
class Lab:
    """Servers that a fault may stop, kill and empty. A daemon's decoder, of JSON or of images, dies over MINE,
    whichever process it runs in."""

    folder: Path
    kafka: Server
    redis: Server
    small_disk: bool  # whether the running service's state is on a disk that can be filled


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("faults")
    with ExitStack() as stack:
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(SITE)
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        environment.setenv("PYTHONPATH", str(folder / "site"))
        kafka = stack.enter_context(servers.kafka_server(folder / "kafka"))
        redis = stack.enter_context(servers.redis_server(folder / "redis"))
        small = stack.enter_context(disks.small_disk(folder / "service" / "state"))
        yield Lab(folder, kafka, redis, small)


@pytest.fixture(scope="package")
def of(lab: Lab) -> Iterator[Service]:
    with service(lab.folder / "service", lab.kafka, lab.redis) as found:
        yield found


def crashed(of: Service, mine: bytes) -> None:
    """A record that kills the decoder does so twice at most, and is the one dead letter of that reason."""
    before = restarts(of)
    of.send(200)
    of.send_bad(mine)
    of.send(200)
    with of.watched():
        until(of.settled, 200, of)
        until(lambda: letters(of) >= of.bad, 60, of)
    outcome = compare(of, Outcome("a crash in the decoder", 1))
    assert outcome.ok, outcome
    assert restarts(of) - before == 2
    assert of.said("record_set_aside")
    until(lambda: _counted(of) == 1, 30, of)


def restarts(of: Service) -> int:
    """Of shards, since the daemon began."""
    found = of.status().get("restarts", {})
    return sum(n for name, n in found.items() if name.startswith("shard"))


def _counted(of: Service) -> int:
    shards = of.status().get("shards", {}).values()
    return sum(shard["dead_letters"].get("crashes_decoder", 0) for shard in shards)

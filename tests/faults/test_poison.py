"""Records that cannot be used, and one that kills the process which decodes it, stop nothing."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from benchmarks.faults.poison import poisoned
from benchmarks.faults.service import Outcome, Service, service, until
from daemon import servers

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

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


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose JSON decoder dies over a text."""
    folder: Path = tmp_path_factory.mktemp("poison")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    with (
        servers.kafka_server(folder / "kafka") as kafka,
        servers.redis_server(folder / "redis") as redis,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("PYTHONPATH", str(folder / "site"))
        with service(folder / "service", kafka, redis) as found:
            yield found


def restarts(of: Service) -> int:
    found = of.status().get("restarts", {})
    return sum(n for name, n in found.items() if name.startswith("shard"))


def test_of_a_hundred_records_one_is_poison(of: Service) -> None:
    outcome = poisoned(of, 1, seed=1)
    assert outcome.ok, outcome
    assert len(of.bad) == 24 and restarts(of) == 0


def test_a_record_that_kills_the_decoder_does_so_twice_at_most(of: Service) -> None:
    before = restarts(of)
    of.send(200)
    at = {"who": "e1", "at": 1_600_000_000, "id": 1, "amount": 1.0, "what": MINE}
    of.send_bad(msgspec.json.encode(at))
    of.send(200)
    with of.watched():
        until(of.settled, 200, of)
        until(lambda: of.letters() >= of.bad, 60, of)
    outcome = of.compare(Outcome("a crash in the decoder", 1))
    assert outcome.ok, outcome
    assert restarts(of) - before == 2
    assert of.said("record_set_aside")
    shards = of.status()["shards"].values()
    assert sum(shard["dead_letters"].get("crashes_decoder", 0) for shard in shards) == 1

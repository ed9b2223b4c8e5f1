"""Another dimension, window and width of the recurrent state in the settings of a running service; one more field."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from actors.served import read_release
from benchmarks.faults.outcome import state_differs
from benchmarks.faults.service import Service, service, until
from tests.faults.conftest import Lab

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
MORE = '[[stream.field]]\nname = "again"\ntype = "number"\npath = "amount"\n'
WIDER = (
    ("dim = 8", "dim = 12"),
    ("hidden = 8", "hidden = 12"),
    ("window = 16", "window = 32"),
    ('[[stream.field]]\nname = "id"', f'{MORE}[[stream.field]]\nname = "id"'),
)


@pytest.fixture(scope="module")
def wider(lab: Lab) -> Iterator[Service]:
    with service(lab.folder / "wider", lab.kafka, lab.redis, topic="wider") as of:
        yield of


def generation(of: Service) -> int:
    return of.reader.generation()


def fresh(of: Service) -> bool:
    """Every record is in what readers find, of one width: they follow `current`, whichever generation it names."""
    found = of.published()
    assert len({len(vector) for _, _, vector in found.values()}) <= 1, "two generations are mixed"
    return all(found.get(name, (0,))[0] == n for name, n in of.counts.items())


def switched(of: Service, to: int) -> None:
    """Records come all the while; each is readable soon, before, while and after the generation is filled."""

    def served() -> bool:
        of.send(20)
        until(lambda: fresh(of), 30, of)
        return generation(of) == to

    until(served, 200, of)


def test_readers_see_one_generation_or_the_other_and_always_the_newest_record(
    wider: Service,
) -> None:
    assert generation(wider) == 1
    assert wider.stop() == 0
    wider.configure(2, *WIDER)
    wider.start()
    with wider.watched():
        until(lambda: fresh(wider), 60, wider)
        switched(wider, to=2)
        until(wider.settled, 60, wider)
    assert not wider.falls
    (_, release, vector), *_ = wider.published().values()
    manifest, _ = read_release(wider.settings.releases / str(release))
    assert (manifest.generation, manifest.dim, manifest.window, len(vector)) == (2, 12, 32, 12)
    assert manifest.numbers == ("amount", "again", "id")
    assert wider.said("fields_filled")
    until(lambda: wider.metric("afresh_generation") == 2, 20, wider)


def test_a_rollback_goes_back_to_the_other_generation_as_it_would_be_now(wider: Service) -> None:
    command = [sys.executable, "-m", "daemon", "rollback", "1", "--config", str(wider.config)]
    with wider.watched():
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "of generation 1" in said
        switched(wider, to=1)
        until(wider.settled, 60, wider)
    assert not wider.falls
    assert {len(vector) for _, _, vector in wider.published().values()} == {8}


def test_what_is_snapshotted_is_what_was_sent(wider: Service) -> None:
    """The rings are as long as the longest window of the generations there were; here they are compared at 32. What
    Kafka had of the new field was read again."""
    assert wider.stop() == 0
    assert state_differs(wider) == []

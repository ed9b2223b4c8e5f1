"""What Kafka says once, while a broker starts again, stops nothing; what it goes on saying does."""

import itertools
from collections.abc import Iterable, Iterator, Mapping

import pytest

from actors import kafka_watch
from actors.kafka_cluster import Partition
from actors.kafka_watch import LOOKS, Watch
from schemas.errors import SourceDown, SourceError
from tests.helpers import eventually

Answer = tuple[int, str] | Exception
FINE = (2, "id")
UNKNOWN = SourceError("The topic 't' does not exist")


class ScriptedCluster:
    """Answers in turn; the last answer is given for ever."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = itertools.chain(answers, itertools.repeat(answers[-1]))
        self.asked = 0

    def describe(self) -> dict[str, tuple[int, str]]:
        answer = next(self._answers)
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return {"t": answer}

    def ends(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        return dict.fromkeys(partitions, 7)

    def commit(self, group: str, positions: Mapping[Partition, int]) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_watch, "ENDS_EVERY_S", 0.01)
    monkeypatch.setattr(kafka_watch, "TOPICS_EVERY_S", 0.0)


@pytest.fixture
def watching() -> Iterator[list[Watch]]:
    watches: list[Watch] = []
    yield watches
    for watch in watches:
        watch.close()


def watch_of(cluster: ScriptedCluster, watching: list[Watch]) -> Watch:
    watching.append(Watch(cluster, ("t",), 2, "group"))  # type: ignore[arg-type]
    return watching[-1]


def test_what_passes_stops_nothing(hasty: None, watching: list[Watch]) -> None:
    strange = [UNKNOWN] * (LOOKS - 1)
    odd = [ValueError("half an answer")] * (LOOKS - 1)
    script = [FINE, *strange, FINE, *odd, FINE, *strange, SourceDown("gone"), *strange, FINE]
    cluster = ScriptedCluster(*script)
    watch = watch_of(cluster, watching)
    eventually(lambda: cluster.asked > len(script) + 1)
    watch.check()
    eventually(lambda: watch.up)


@pytest.mark.parametrize("error", [UNKNOWN, ValueError("half an answer")])
def test_what_stays_stops_the_stream(hasty: None, watching: list[Watch], error: Exception) -> None:
    cluster = ScriptedCluster(FINE, error)
    watch = watch_of(cluster, watching)

    def stopped() -> bool:
        try:
            watch.check()
        except SourceError:
            return True
        return False

    eventually(stopped)
    assert cluster.asked >= 1 + LOOKS and not watch.up


def test_looks_that_come_at_once_count_once(watching: list[Watch]) -> None:
    """Commits and new partitions wake the watch."""
    cluster = ScriptedCluster(UNKNOWN)
    watch = watch_of(cluster, watching)
    for asked in range(1, LOOKS + 3):
        eventually(lambda asked=asked: cluster.asked >= asked)  # type: ignore[misc]
        watch.add([("t", asked)])
    watch.check()


@pytest.mark.parametrize(("then", "says"), [((3, "id"), "3 partitions"), ((2, "new"), "anew")])
def test_a_changed_topic_stops_it_at_the_first_look(
    hasty: None, watching: list[Watch], then: Answer, says: str
) -> None:
    watch = watch_of(ScriptedCluster(FINE, then, FINE), watching)
    with pytest.raises(SourceError, match=says):
        eventually(watch.check)

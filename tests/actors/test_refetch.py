"""Images that a new release fetches again, while their store does not answer."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from actors.group import Group
from tests.actors.test_images import BLUE, GREEN, GREY, RED, Lab, stream_of
from tests.fakes import Record
from tests.helpers import eventually
from tests.images import image, png, vector
from tests.services import deletion, settle


class Gate(MemoryFileSystem):
    """A store that answers once its gate is open; what is not there then is a FileNotFoundError."""

    protocol = "gate"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    open_gate = threading.Event()
    waiting = threading.Semaphore(0)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("gate://")))

    def _open(self, path: str, *args: Any, **more: Any) -> Any:
        if "slow" in path and not type(self).open_gate.is_set():
            type(self).waiting.release()
            type(self).open_gate.wait()
        return super()._open(path, *args, **more)


fsspec.register_implementation("gate", Gate, clobber=True)


@pytest.fixture
def store() -> Iterator[Gate]:
    found = Gate()
    Gate.open_gate.set()
    for name, colour in (("slow-red", RED), ("slow-green", GREEN), ("blue", BLUE)):
        found.pipe(f"/x/{name}", png(colour))
    Gate.waiting = threading.Semaphore(0)
    yield found
    Gate.open_gate.set()
    eventually(lambda: not any(t.name == "fetch" for t in threading.enumerate()))


def lab_of(folder: Path, window: int = 1, **image_keys: Any) -> Lab:
    keys = {"keep": "uri", "uri_roots": ("gate://x/",), "fetch_tries": 1, "fetch_s": 5.0}
    lab = Lab(folder, window, stream_of(**{**keys, **image_keys}))
    lab.release(1)
    return lab


def at(who: str, second: int, name: str) -> Record:
    value = json.dumps({"uri": f"gate://x/{name}"}).encode()
    return Record(value, who.encode(), headers=[("time", b"%d" % second)])


def hang(lab: Lab, number: int) -> Group:
    """Adopts a release, of which images are fetched again that do not come."""
    Gate.open_gate.clear()
    lab.release(number)
    eventually(lambda: lab.shard.turn() * 0 or Gate.waiting.acquire(blocking=False))
    return lab.shard.groups[0]


def under_way(group: Group) -> bool:
    assert group.served.refetch is not None
    return group.served.refetch._batch is not None and not group.served.refetch._batch.answer.done()


def test_who_needs_no_image_does_not_wait_for_those_who_do(tmp_path: Path, store: Gate) -> None:
    lab = lab_of(tmp_path)
    lab.put(image("c", 10, GREY))
    lab.put(at("a", 20, "slow-red"))
    lab.shard._chunk = 1
    group = hang(lab, 2)
    lab.server.entities.clear()
    group.state.owed[:2] = True
    for _ in range(10):
        lab.shard.turn()
    assert lab.found("c") is not None
    assert under_way(group)
    Gate.open_gate.set()
    settle(lab.shard)
    np.testing.assert_allclose(lab.found("a").vector, vector(2, RED), atol=1e-6)


def test_what_comes_does_not_wait_for_what_is_fetched_again(tmp_path: Path, store: Gate) -> None:
    lab = lab_of(tmp_path, fetches=1)
    lab.put(at("a", 10, "slow-red"))
    group = hang(lab, 2)
    lab.source.put(at("b", 20, "blue"))
    lab.shard.turn()
    assert lab.found("b").count == 1
    assert under_way(group)


def test_who_took_the_place_of_a_deleted_entity_is_fetched_for_itself(
    tmp_path: Path, store: Gate
) -> None:
    lab = lab_of(tmp_path, window=2)
    lab.put(at("a", 10, "slow-red"), at("a", 11, "slow-green"))
    group = hang(lab, 2)
    slot = group.state.index["a"]
    lab.source.put(deletion("a"), at("b", 20, "blue"))
    lab.shard.turn()
    assert group.state.index["b"] == slot
    store.rm("/x/slow-red")
    store.rm("/x/slow-green")
    lab.release(3)
    lab.shard.turn()
    Gate.open_gate.set()
    settle(lab.shard)
    assert lab.found("b").release == 3
    np.testing.assert_allclose(lab.found("b").vector, vector(3, BLUE), atol=1e-6)


def test_as_many_images_are_fetched_at_a_time_as_a_turn_encodes(
    tmp_path: Path, store: Gate
) -> None:
    lab = lab_of(tmp_path, window=3)
    names = [f"e{i}" for i in range(6)]
    lab.put(*(at(who, 10 + i, "slow-red") for who in names for i in range(3)))
    assert lab.shard.images is not None
    lab.shard.images.most = 7
    group = hang(lab, 2)
    assert group.served.refetch is not None
    assert group.served.refetch._batch is not None
    assert len(group.served.refetch._batch.slot) == 6, "those of two entities"
    Gate.open_gate.set()
    settle(lab.shard)
    assert {lab.found(who).release for who in names} == {2}

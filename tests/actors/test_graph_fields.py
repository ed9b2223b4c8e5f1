"""Fields of edges and nodes that are named later, or no more: another generation of the same state."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from actors.cut import Cut, columns, wide
from actors.edges import Edges
from actors.group import Group
from actors.mirror import Message, Reader
from actors.refill import Refill
from actors.served import Served, served, set_served
from actors.shard import Shard
from schemas.errors import SettingsError, SnapshotError
from schemas.records import Decoded
from schemas.stream import DIRECTION, Field, FieldType, StreamConfig
from tests import graphs, summed
from tests.actors import test_whole_graphs as whole
from tests.actors.test_generations import fill, filled, switch
from tests.actors.test_graph_shards import message, mirror_batch
from tests.fake_sink import MemoryServer
from tests.fakes import MemorySource, Record
from tests.graphs import GROUPS, TOPICS, Log, open_owner
from tests.services import SLOTS, adopt, assert_same, make_shard, published, settle

OLD, NEW, WINDOW = 1, 2, 64
PRICE, PLACE = Field("price", FieldType.number), Field("place", FieldType.category)
AMOUNT = Field("amount", FieldType.number)
RANK, BAND = Field("rank", FieldType.number), Field("band", FieldType.category)


def changed(stream: StreamConfig) -> StreamConfig:
    """Without what nodes scored, or edges amounted to; with a number and a category that are new."""
    if stream.whole:
        return msgspec.structs.replace(stream, field=(PLACE, PRICE))
    field = PRICE, Field("what", FieldType.category), PLACE, AMOUNT
    return msgspec.structs.replace(stream, field=field, node=(RANK, BAND))


def said(records: list[Record], seed: int) -> list[Record]:
    """With values of the new fields, from the first record on."""
    rng, out = np.random.default_rng(seed), []
    for r in records:
        value = msgspec.json.decode(r.value or b"")
        value |= {"price": float(rng.normal()), "place": f"p{rng.integers(3)}"}
        value |= {"rank": float(rng.normal()), "band": f"b{rng.integers(3)}"}
        out.append(r._replace(value=msgspec.json.encode(value)))
    return out


def some(stream: StreamConfig, groups: int = 1) -> list[Record]:
    """300 records; no ring overflows."""
    if stream.whole:
        return said(whole.stream(300, 6, 0), 1)
    return said(graphs.stream(300, 24, 0, late=9, groups=groups), 1)


class Service:
    """A stream whose fields change, in one group."""

    def __init__(self, folder: Path, stream: StreamConfig) -> None:
        self.folder, self.before, self.after = folder, stream, changed(stream)
        self.records, self.server, self.learner = some(stream), MemoryServer(), Log()
        self.source, self.at, self.restarts = MemorySource([]), 0, 0
        releases(folder, stream)

    def put(self, n: int) -> None:
        self.source.put(*self.records[self.at : self.at + n])
        self.at += n

    def open(self, stream: StreamConfig) -> Shard:
        of = (WINDOW, 0, SLOTS, 0, WINDOW)
        shard = make_shard(
            self.folder, self.source, self.server, self.restarts, stream=stream, sizes=of,
            learner=self.learner,  # type: ignore[arg-type]
        )  # fmt: skip
        self.restarts += 1
        for group in shard.groups.values() if stream.nodes else ():
            group.join(1)
        shard.offers.budget.allows = lambda: True  # type: ignore[method-assign]
        groups = list(shard.groups.values())
        if any(group.lacking for group in groups):
            again = MemorySource(self.records[: self.at])
            shard.refill = Refill(again, shard.decoder, groups)
            shard.offers.cut = Cut.of(columns(self.after), columns(stream))
        return shard

    def wanted(self, release: int) -> Any:
        stream = self.before if release == OLD else self.after
        folder = self.folder / "releases" / str(release)
        return summed.from_scratch(self.records[: self.at], folder, stream, WINDOW)


def releases(folder: Path, stream: StreamConfig) -> None:
    summed.make_release(folder / "releases", NEW, changed(stream), WINDOW, generation=2)
    summed.make_release(folder / "releases", OLD, stream, WINDOW)
    set_served(folder / "releases", Served(OLD, 1))


def refilled(shard: Shard) -> None:
    for _ in range(500):
        shard.turn()
        shard.snapshots.finish()
        if shard.refill is None:
            return
    raise AssertionError("it is never read again")


@pytest.mark.parametrize("stream", [whole.STREAM, graphs.STREAM], ids=["whole graphs", "nodes"])
@pytest.mark.parametrize("killed_after", [None, 0, 3])
def test_other_fields_of_a_graph_are_another_generation(
    tmp_path: Path, stream: StreamConfig, killed_after: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one is as it was, and the new one as if the fields had been named from the first record on."""
    monkeypatch.setattr("actors.refill.RECORDS", 17)
    service = Service(tmp_path, stream)
    service.put(150)
    shard = service.open(stream)
    adopt(shard)
    settle(shard)
    shard.drain()
    both = wide(service.after, tmp_path / "releases")
    service.put(60)
    shard = service.open(both)
    new = {"price", "place"} if stream.whole else {"price", "place", "node.rank", "node.band"}
    assert set(shard.groups[0].lacking) == new
    if killed_after is not None:
        for _ in range(killed_after):
            shard.turn(5)
        shard.snapshots.finish()
        shard = service.open(both)
    adopt(shard)
    fill(tmp_path, shard)
    refilled(shard)
    settle(shard)
    assert filled(shard) == NEW
    assert_same(published(service.server), service.wanted(OLD))
    assert_same(published(service.server, 2), service.wanted(NEW))
    service.put(40)
    settle(shard)
    assert_same(published(service.server), service.wanted(OLD))
    rows, shape = service.learner.rows_of_last, service.after.shape
    assert rows.numbers.shape[1:] == (shape.numbers,)
    assert rows.categories.shape[1:] == (shape.categories,)
    for told in service.learner.told[-1:]:
        assert told.features.numbers.shape[1] == shape.node_numbers
    switch(tmp_path, shard)
    shard.drain()
    assert wide(service.after, tmp_path / "releases") == service.after
    shard = service.open(service.after)
    assert not shard.groups[0].lacking and shard.groups[0].fields == service.after.columns
    service.put(50)
    adopt(shard)
    settle(shard)
    assert_same(published(service.server, 2), service.wanted(NEW))


# -- the mirror -------------------------------------------------------------------------------------


@pytest.mark.parametrize("unnamed", [False, True], ids=["named", "as they once were"])
def test_what_groups_told_each_other_before_the_change_is_read_after_it(
    tmp_path: Path, unnamed: bool
) -> None:
    """The old generation is served as it was, edges each count once, and of the new fields there is what came since,
    and what each group's own partition has."""
    stream, after = graphs.STREAM, changed(graphs.STREAM)
    releases(tmp_path, stream)
    records, server = some(stream, GROUPS), MemoryServer()
    logs = MemorySource(records[:100], TOPICS, GROUPS)
    owners = [open_owner(tmp_path, logs, server, n) for n in range(GROUPS)]
    graphs.settle(owners)
    logs.put(*records[100:200])
    for owner in owners:  # what they tell is in the log, and is not read yet
        owner.shard.source.pause(owner.group.number, 1)
        while owner.shard.turn():
            pass
        owner.mirror.flush()
        owner.shard.drain()
    if unnamed:
        forget_names(logs)
    both = wide(after, tmp_path / "releases")
    owners = [open_owner(tmp_path, logs, server, n, 1, stream=both) for n in range(GROUPS)]
    assert all(owner.group.lacking for owner in owners)
    for owner in owners:
        owner.shard.refill = Refill(
            MemorySource(records[:200], TOPICS[:1], GROUPS), owner.shard.decoder, [owner.group]
        )
    logs.put(*records[200:])
    graphs.settle(owners)
    for owner in owners:
        refilled(owner.shard)
    old = tmp_path / "releases" / str(OLD)
    assert_same(published(server), summed.from_scratch(records, old, stream, WINDOW))
    assert not any(o.shard.dead_letters.letters for o in owners)  # type: ignore[attr-defined]
    for owner in owners:
        state = owner.group.state
        windows = state.windows(np.array(sorted(state.index.values())))
        price = windows.rows.numbers[:, owner.group.fields.index("price")]
        own = windows.rows.numbers[:, DIRECTION] == 1.0
        assert own.any() and not np.isnan(price[own]).any(), "of its own partition it has all"
        assert np.isnan(price[~own]).any() and not np.isnan(price[~own]).all()


def forget_names(logs: MemorySource) -> None:
    """Messages of the mirror as they were written before they named their columns."""
    for (_, topic), log in logs._logs.items():
        if topic == 1:
            for at, (offset, item) in enumerate(log.entries):
                assert isinstance(item, Record)
                told = msgspec.msgpack.decode(item.value or b"", type=Message)
                assert told.columns[0][0] == "direction"
                plain = msgspec.msgpack.encode(msgspec.structs.replace(told, columns=[]))
                log.entries[at] = offset, item._replace(value=plain)


def test_a_reader_takes_columns_by_their_names() -> None:
    stream, after = graphs.STREAM, changed(graphs.STREAM)
    none = msgspec.structs.replace(stream, node=())
    name = next(n for n in map(str, range(9)) if graphs.edge(n, "", 1, 2).group == 1)
    source = next(n for n in map(str, range(9)) if graphs.edge(n, "", 1, 2).group == 0)
    records = [
        graphs.edge(source, name, 1, 2, amount=1.5, what="w", type="t"),
        graphs.node(source, 2, 2, of="x", score=2.5),
    ]

    def sent(names: Any) -> bytes:
        return message(Edges(stream.shape, 0, 5, 2, 1, {}, (names, names)), records)

    def read(what: StreamConfig, value: bytes) -> Decoded:
        names = columns(what), columns(stream)
        decoded, bad = Edges(what.shape, 1, 5, 2, 1, {}, names).reader.read(mirror_batch(value))
        assert not bad
        return decoded

    plain = msgspec.structs.replace(
        msgspec.msgpack.decode(sent(columns(stream)), type=Message), columns=[]
    )
    for value in (sent(columns(stream)), msgspec.msgpack.encode(plain)):
        decoded = read(after, value)
        assert decoded.entities == [name]
        direction, price, amount = decoded.rows.numbers[0].tolist()
        assert (direction, amount) == (0.0, 1.5) and np.isnan(price)
        assert decoded.rows.missing[0].tolist() == [False, False, False, True]  # place is new
        assert decoded.told is not None and np.isnan(decoded.told.features.numbers).all()
        assert read(stream, value).told.features.numbers.tolist() == [[2.5]]  # type: ignore[union-attr]
        assert read(none, value).entities == [name], "who knows nothing of nodes has the edges"
    other = columns(msgspec.structs.replace(stream, edge_type=""))
    reader = Edges(stream.shape, 1, 5, 2, 1, {}, (columns(stream), columns(stream))).reader
    assert isinstance(reader, Reader)
    _, bad = reader.read(mirror_batch(sent(other)))
    assert [b.error for b in bad] == ["bad_mirror"]


# -- what may not change ----------------------------------------------------------------------------


def test_what_may_not_change_is_refused_with_what_to_do(tmp_path: Path) -> None:
    service = Service(tmp_path, graphs.STREAM)
    service.put(40)
    shard = service.open(graphs.STREAM)
    adopt(shard)
    settle(shard)
    shard.drain()

    def reopen(stream: StreamConfig) -> Group:
        of = WINDOW, 0, SLOTS
        folder, topics = tmp_path / "group-0", service.source.topics
        return Group.open(0, 1 << 30, topics, folder, stream.shape, of, stream.columns)

    stream = graphs.STREAM
    number = Field("of", FieldType.number)
    for says, keys in (
        ("stream.edge_type", {"edge_type": ""}),
        ("another kind", {"unit": "graph", "source": "from", "node": ()}),
        ("'node.of' as a category, the settings as a number", {"node": (number,)}),
    ):
        with pytest.raises(SnapshotError, match=says):
            reopen(msgspec.structs.replace(stream, **keys))
    assert reopen(changed(stream)).lacking
    with pytest.raises(
        SettingsError, match=r"stream\.node .score. is a category, and of release 1"
    ):
        wide(
            msgspec.structs.replace(stream, node=(Field("score", FieldType.category),)),
            tmp_path / "releases",
        )
    with pytest.raises(SettingsError, match=r"stream\.op is missing: name it until"):
        wide(msgspec.structs.replace(stream, node=(), op=""), tmp_path / "releases")
    assert served(tmp_path / "releases").release == OLD

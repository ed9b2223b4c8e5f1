"""A shard in memory, a release of an untrained encoder, and the oracle: every vector from scratch."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

from actors.cut import columns
from actors.decode import DecodeConfig, make_decoder
from actors.embed import Releases, encode_anew
from actors.encode import Release
from actors.folders import epoch_of
from actors.group import Group
from actors.ports import LearnerPort
from actors.processes import images_of
from actors.shard import Ports, Shard
from actors.shard_config import ShardConfig
from actors.sink import Sink
from actors.state import State
from learning import encoders, export
from learning.config import EncoderConfig, GruConfig
from schemas.stream import Field, FieldType, StreamConfig
from tests.fake_sink import MemoryServer, MemorySink
from tests.fakes import MemoryDeadLetters, MemorySource, Record
from tests.releases import write_release

STREAM = StreamConfig(
    entity="who",
    time="at",
    field=(
        Field("what", FieldType.category),
        Field("amount", FieldType.number),
        Field("weight", FieldType.number),
    ),
    time_unit="s",
)
ENCODER = GruConfig(dim=8, hidden=8, window=8, category_dim=4, bucket_bits=6)
SLOTS = 256


def make_release(
    releases: Path,
    number: int,
    encoder: EncoderConfig = ENCODER,
    stream: StreamConfig = STREAM,
    generation: int = 1,
) -> None:
    """Writes and names as current a release whose weights follow from its number."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        module = encoders.build(encoder, stream.shape).eval()
    graphs = export.export(module, {"release": str(number)})
    write_release(
        releases, number, graphs, stream, generation,
        dim=encoder.dim, window=encoder.window, state=encoder.state,
    )  # fmt: skip


def record(who: str, at: int, amount: float = 1.0, what: str = "x", **more: object) -> Record:
    value = {"who": who, "at": at, "amount": amount, "what": what, **more}
    return Record(msgspec.json.encode(value), who.encode(), time_ms=at * 1000)


def deletion(who: str) -> Record:
    return Record(None, who.encode())


def make_shard(
    folder: Path,
    source: MemorySource,
    server: MemoryServer | Sink,
    restarts: int = 0,
    config: ShardConfig | None = None,
    slots: int = SLOTS,
    stream: StreamConfig = STREAM,
    encoder: EncoderConfig = ENCODER,
    sizes: tuple[int, ...] | None = None,
    learner: LearnerPort | None = None,
    **more: object,
) -> Shard:
    """A shard of all the source's groups, restored from `folder`."""
    sizes = sizes or (encoder.window, encoder.kept, slots)
    groups = [
        Group.open(
            n,
            epoch_of(1, restarts),
            source.topics,
            folder / f"group-{n}",
            stream.shape,
            sizes,
            stream.columns,
        )
        for n in sorted({group for group, _ in source._logs})
    ]
    ports = Ports(
        source,
        make_decoder(stream, DecodeConfig()),
        MemorySink(server) if isinstance(server, MemoryServer) else server,
        MemoryDeadLetters(),
        Releases(folder / "releases", there=columns(stream)),
        learner,
    )
    config = config or ShardConfig(snapshot_every_s=1e-9)
    more.setdefault("images", images_of(stream, groups, ports.decoder))
    return Shard(config, groups, ports, **more)  # type: ignore[arg-type]


def adopt(shard: Shard) -> None:
    """Lets the shard load what `releases/current` names."""
    shard.releases.refresh()
    assert shard.releases._loading is not None
    shard.releases._loading.join()


def settle(shard: Shard) -> None:
    """Turns until all is read and nothing is owed."""
    for _ in range(5_000):
        read = shard.turn()
        if shard.releases._loading is not None:
            shard.releases._loading.join()
        if not read and all(
            g.phase == "serving" and not g.state.owed.any() and not g.deletions()
            for g in shard.groups.values()
        ):
            return
    raise AssertionError("the shard does not settle")


def from_scratch(
    records: Sequence[Record],
    release: Path,
    stream: StreamConfig = STREAM,
    encoder: EncoderConfig = ENCODER,
) -> dict[str, tuple[int, np.ndarray]]:  # type: ignore[type-arg]
    """entity -> (count, vector) of all records at once, by `encode` alone."""
    decoder = make_decoder(stream, DecodeConfig())
    offsets = np.arange(len(records))
    decoded, bad = decoder.decode(
        0, offsets, offsets, [r.key for r in records], [r.value for r in records]
    )
    assert not bad
    state = State(stream.shape, encoder.window, encoder.state, SLOTS)
    state.apply(decoded)
    slots = np.array(sorted(state.index.values()), np.int64)
    vectors = encode_anew(state, slots, Release.load(release))
    names = [state.names[slot] or "" for slot in slots.tolist()]
    counts = state.count[slots].tolist()
    return {name: (count, v) for name, count, v in zip(names, counts, vectors, strict=True)}


def published(server: MemoryServer, generation: int = 1) -> dict[str, tuple[int, np.ndarray]]:  # type: ignore[type-arg]
    """entity -> (count, vector) as readers find them."""
    return {
        name: (stored.count, stored.vector)
        for (g, name), stored in server.entities.items()
        if g == generation and not isinstance(stored, tuple)
    }


def assert_same(found: dict, wanted: dict) -> None:  # type: ignore[type-arg]
    assert {name: count for name, (count, _) in found.items()} == {
        name: count for name, (count, _) in wanted.items()
    }
    for name, (_, vector) in wanted.items():
        np.testing.assert_allclose(found[name][1], vector, atol=1e-5, err_msg=name)

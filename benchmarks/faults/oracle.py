"""What must hold once all faults have ended: the state, Redis and the dead letters are those of the stream."""

import numpy as np

from actors.decode import DecodeConfig, make_decoder
from actors.embed import encode_anew
from actors.group import Group
from actors.served import current_release
from actors.sink import Stored
from actors.state import State
from benchmarks.faults.stand_ins import HIDDEN, SmallRelease, Violation
from benchmarks.faults.world import SLOTS, STREAM, Owner, World
from schemas.records import category_hash
from tests.fakes import Record

SETTLE = 600


def settle(world: World) -> None:
    """All faults end; the newest owners turn until all is read and nothing is owed."""
    world.say("all faults end")
    world.server.down, world.server.fail_after, world.server.next_write = False, None, ""
    current = current_release(world.folder / "releases")
    if not (world.folder / "releases" / str(current or "none")).is_dir():
        world.release()
    while world.server.late:
        world.server.arrive(0.0)
    for owner in list(world.zombies):
        owner.disk.heal()
        for _ in range(world.rng.randint(0, 4)):
            if not world.turn(owner, 20):
                break
        else:
            world.bury(owner, "ends as a zombie")
    world.open_missing()
    for owner in list(world.owners):
        owner.disk.heal()
        owner.source.fails, owner.letters.flush_fails = 0, None
    for n in range(SETTLE):
        world.clock.now += 10.0 * (n < 3)  # the shards look at Redis, where nothing is read
        for owner in world.owners:
            world.clock.now += 0.1
            if not world.turn(owner, 64):
                raise Violation(f"{owner.name} does not live although nothing fails")
        if n >= 3 and all(map(settled, world.owners)):
            return
    raise Violation(f"the shards do not settle: {[w for o in world.owners for w in waits(o)]}")


def settled(owner: Owner) -> bool:
    return not waits(owner)


def waits(owner: Owner) -> list[str]:
    """What is still to be done, in words."""
    found = [f"{owner.name}: {len(owner.shard.offers.forgets)} to forget"] * bool(
        owner.shard.offers.forgets
    )
    for n, g in owner.shard.groups.items():
        for left in (
            f"{g.phase}" * (g.phase != "serving"),
            f"{owner.source.lag(n)} to read" * bool(owner.source.lag(n)),
            f"{owner.shard.skew.waiting(n)} wait" * any(owner.shard.skew.waiting(n)),
            f"{g.state.owed.sum()} owed" * bool(g.state.owed.any()),
            f"{g.deletions()} to delete" * bool(g.deletions()),
            f"slabs ahead of {g.positions}" * (g.state.marks is not None),
        ):
            found += [f"{owner.name}, group {n}: {left}"] * bool(left)
    return found


def check(world: World) -> None:
    """State, Redis and dead letters against what plain lists of all that was sent give."""
    served: dict[str, Stored] = {}
    for owner in world.owners:
        current = owner.shard.releases.current
        assert current is not None
        for number, group in sorted(owner.shard.groups.items()):
            truth = from_scratch(world, number)
            same_state(group.state, truth, f"group {number} of {owner.name}")
            served |= expected(truth, SmallRelease(current.manifest))  # type: ignore[arg-type]
    found = {name: e for (_, name), e in world.server.entities.items() if isinstance(e, Stored)}
    if found.keys() != served.keys():
        raise Violation(
            f"Redis lacks {sorted(served.keys() - found.keys())} and should not have "
            f"{sorted(found.keys() - served.keys())}"
        )
    for name, wanted in served.items():
        have = found[name]
        if (have.count, have.release) != (wanted.count, wanted.release):
            raise Violation(f"{name}: Redis has {have}, the stream gives {wanted}")
        if not np.allclose(have.vector, wanted.vector, atol=1e-5):
            raise Violation(
                f"{name}: Redis has the vector {have.vector}, from scratch {wanted.vector}"
            )


def from_scratch(world: World, group: int) -> State:
    """The state that all the group's records give, each once."""
    state = State(STREAM.shape, world.shape.window, HIDDEN, SLOTS)
    decoder = make_decoder(STREAM, DecodeConfig())
    for topic in range(world.shape.topics):
        log = world.broker._logs[group, topic].entries
        records = [(offset, item) for offset, item in log if isinstance(item, Record)]
        records = [r for r in records if (topic, group, r[0]) not in world.bad]
        offsets = np.array([offset for offset, _ in records], np.int64)
        decoded, bad = decoder.decode(
            topic, offsets, offsets, [r.key for _, r in records], [r.value for _, r in records]
        )
        assert not bad
        state.apply(decoded)
    return state


def same_state(found: State, truth: State, what: str) -> None:
    if found.index.keys() != truth.index.keys():
        odd = sorted(found.index.keys() ^ truth.index.keys())
        raise Violation(f"{what}: {odd} are in the state or in the stream, not in both")
    for name, at in truth.index.items():
        have = found.index[name]
        if found.count[have] != truth.count[at]:
            counts = f"{found.count[have]} times, not {truth.count[at]}"
            raise Violation(f"{what}: {name} was counted {counts}")
        if not np.allclose(found.totals[have], truth.totals[at], rtol=1e-9):
            raise Violation(
                f"{what}: {name} has the totals {found.totals[have]}, not {truth.totals[at]}"
            )
        ring = found.windows(np.array([have])).rows.position
        wanted = truth.windows(np.array([at])).rows.position
        if not np.array_equal(ring, wanted):
            raise Violation(f"{what}: the ring of {name} has {ring}, not {wanted}")


def expected(truth: State, release: SmallRelease) -> dict[str, Stored]:
    slots = np.array(sorted(truth.index.values()), np.int64)
    vectors = encode_anew(truth, slots, release)  # type: ignore[arg-type]
    return {
        truth.names[slot] or "": Stored(
            vector, release.number, 0, int(truth.count[slot]), 0, 0, 0, 0
        )
        for slot, vector in zip(slots.tolist(), vectors, strict=True)
    }


def restored(world: World) -> None:
    """What a drain leaves is the whole state."""
    for owner in list(world.owners):
        world.say(f"{owner.name} drains")
        world.act(owner, owner.shard.drain)
        world.bury(owner, "ends")
    sizes = world.shape.window, HIDDEN, SLOTS
    for number in range(world.shape.groups):
        path = world.folder / f"group-{number}"
        group = Group.open(number, 1 << 50, world.broker.topics, path, STREAM.shape, sizes)
        same_state(group.state, from_scratch(world, number), f"group {number} restored")
    if world.durable != world.bad:
        raise Violation(
            f"dead letters: missing {sorted(world.bad - world.durable)}, "
            f"not bad {sorted(world.durable - world.bad)}"
        )
    deleted = {category_hash(name): name for name in world.server.judge.reborn}
    kept = sorted(name for entity, name in deleted.items() if entity not in world.forgotten)
    if kept:
        raise Violation(f"the learner was not told to forget {kept}")

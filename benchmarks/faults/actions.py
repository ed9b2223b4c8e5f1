"""What happens in a simulation: turns, crashes, successors, outages, bad disks, releases.

Each action draws from the world's random numbers alone, and says what it did."""

import shutil
from collections.abc import Callable
from pathlib import Path

from actors.folders import Folder, folders
from actors.served import current_release
from benchmarks.faults.world import Owner, World, crashing
from schemas.errors import SnapshotError


def some(world: World, among: list[Owner]) -> Owner | None:
    return world.rng.choice(among) if among else None


def turns(world: World) -> None:
    """What happens most of the time."""
    if world.rng.random() < 0.5:
        world.open_missing()
    if world.server.down and world.rng.random() < 0.3:
        outage(world)
    if world.rng.random() < 0.4:
        world.produce(world.rng.randint(1, 12))
    world.clock.now += world.rng.choice((0.01, 0.1, 1.0))
    for owner in [*world.owners, *world.zombies]:
        for _ in range(world.rng.randint(0, 2)):
            most = world.rng.randint(1, 20)
            world.say(f"{owner.name} turns, {most} at most")
            if not world.turn(owner, most):
                break


def kill(world: World) -> None:
    """Between two turns; now and then the power goes too."""
    if owner := some(world, world.owners):
        power = world.rng.random() < 0.4
        if power:
            owner.disk.power_cut(world.rng.random() < 0.5)
        world.bury(owner, "loses its power" if power else "is killed")


def crash(world: World) -> None:
    """In the middle of a turn, at any line."""
    if owner := some(world, world.owners):
        lines = world.rng.randint(1, world.rng.choice((60, 300, 900)))
        most = world.rng.randint(1, 20)
        world.say(f"{owner.name} turns, {most} at most, and crashes after {lines} lines")
        owner.shard._chunk = world.rng.randint(1, 6)
        world.act(owner, lambda: crashing(lambda: owner.shard.turn(most), lines))


def stop(world: World) -> None:
    if owner := some(world, world.owners):
        world.say(f"{owner.name} drains")
        if world.act(owner, owner.shard.drain):
            world.bury(owner, "ends")


def replace_live(world: World) -> None:
    """A successor begins while the old process still lives."""
    if owner := some(world, world.owners):
        world.say(f"{owner.name} is a zombie now")
        world.owners.remove(owner)
        world.zombies.append(owner)
        world.open_missing()


def restart_all(world: World) -> None:
    world.lease, world.restarts = world.lease + 1, dict.fromkeys(world.restarts, 0)
    for owner in list(world.owners):
        if world.rng.random() < 0.3:
            world.owners.remove(owner)
            world.zombies.append(owner)
            world.say(f"{owner.name} is a zombie now")
        else:
            world.bury(owner, "goes with its daemon")
    world.open_missing()


def harm_disk(world: World) -> None:
    if owner := some(world, [*world.owners, *world.zombies]):
        how = world.rng.choice(("full", "killed", "power"))
        calls = world.rng.randint(1, 16)
        world.say(f"{owner.name}'s disk: {how} at call {calls} from now")
        owner.disk.fail(calls, how, after=world.rng.random() < 0.5)


def rot(world: World) -> None:
    """A byte of a group's newest snapshot changes, where the one before is whole."""
    found = folders(world.folder / f"group-{world.rng.randrange(world.shape.groups)}")
    if len(found) < 2 or not all(map(whole, found[:2])):
        return
    victim = world.rng.choice(sorted(found[0].iterdir()))
    data = bytearray(victim.read_bytes())
    data[world.rng.randrange(len(data))] ^= 1 << world.rng.randrange(8)
    victim.write_bytes(data)
    world.say(f"a bit of {victim.relative_to(world.folder)} flips")


def whole(path: Path) -> bool:
    try:
        folder = Folder.open(path)
        for file in folder.files:
            folder.read(file)
    except SnapshotError:
        return False
    return True


def outage(world: World) -> None:
    world.server.down = not world.server.down
    world.say(f"Redis is {'down' if world.server.down else 'up'}")


def break_write(world: World) -> None:
    how = world.rng.choice(("partly", "unanswered", "late", "lost", "lost"))
    world.say(f"the next write: {how}")
    if how == "partly":
        world.server.fail_after = world.rng.randrange(6)
    else:
        world.server.next_write = how


def lose(world: World) -> None:
    world.say("Redis loses its data")
    world.server.lose()


def arrive(world: World) -> None:
    if world.server.late:
        world.say("a late write arrives")
        world.server.arrive(world.rng.random())


def redeliver(world: World) -> None:
    if owner := some(world, [*world.owners, *world.zombies]):
        if world.rng.random() < 0.5:
            owner.source.again = [world.rng.random() for _ in range(world.rng.randint(1, 4))]
            world.say(f"{owner.name} will get {owner.source.again} of its batches again")
        else:
            number = world.rng.choice(sorted(owner.shard.groups))
            share = world.rng.random()
            owner.source.rewind(number, share)
            world.say(f"{owner.name} reads group {number} again from {share:.2f}")


def break_broker(world: World) -> None:
    if owner := some(world, world.owners):
        if world.rng.random() < 0.5:
            owner.source.fails = world.rng.randint(1, 3)
            world.say(f"{owner.name}: the broker fails {owner.source.fails} polls")
        else:
            owner.letters.flush_fails = world.rng.random()
            world.say(f"{owner.name}: the dead letters fail once")


def move_clocks(world: World) -> None:
    by = world.rng.choice((-3600.0, 3600.0))
    world.wall.now += by
    world.clock.now += world.rng.choice((0.0, 20.0))
    world.say(f"the wall clock moves by {by} s")


def drop_release(world: World) -> None:
    """Its folder is gone; who is tagged with it is encoded anew."""
    if world.releases:
        number = world.rng.randint(1, world.releases)
        shutil.rmtree(world.folder / "releases" / str(number), ignore_errors=True)
        world.say(f"release {number} is gone")


def feed_learner(world: World) -> None:
    if owner := some(world, world.owners):
        owner.learner.room = world.rng.choice((0, 3, 50))


def die_in_write(world: World) -> None:
    """Redis has the positions, and some of the vectors; the process is no more."""
    if owner := some(world, world.owners):
        world.server.fail_after = world.rng.randrange(1, 5)
        most = world.rng.randint(2, 20)
        world.say(f"{owner.name} turns, {most} at most, and dies in a write")
        world.produce(most)
        down = world.server.down
        if world.turn(owner, most) and world.server.down != down:
            world.bury(owner, "died")
        world.server.down, world.server.fail_after = down, None


def there_and_back(world: World) -> None:
    """A release is tried and rolled back, and who served it has no snapshot of that."""
    if owner := some(world, world.owners):
        before = current_release(world.folder / "releases")
        world.release()
        for _ in range(world.rng.randint(4, 8)):
            if not world.turn(owner, 1):
                return
        if before:
            world.release(before)
        world.bury(owner, "is killed")


def die_refilling(world: World) -> None:
    """An emptied Redis is filled in part by a process that is no more."""
    if owner := some(world, world.owners):
        lose(world)
        for _ in range(world.rng.randint(2, 4)):
            if not world.turn(owner, 1):
                return
        world.bury(owner, "is killed")


ACTIONS: dict[Callable[[World], None], float] = {
    turns: 0, World.release: 5, crash: 8, kill: 3, stop: 2, replace_live: 3, restart_all: 1,
    harm_disk: 5, rot: 1, outage: 3, break_write: 6, die_in_write: 5, lose: 2, die_refilling: 2,
    there_and_back: 1, arrive: 3, redeliver: 4, break_broker: 3, move_clocks: 2, drop_release: 1, feed_learner: 1,
}  # fmt: skip
"""How often each comes beside the turns, which are every second action."""
TROUBLES: list[tuple[Callable[[World], None], ...]] = [
    (there_and_back,), (World.release, stop), (lose, kill), (lose, replace_live), (die_refilling,),
    (break_write, stop), (break_write, arrive, replace_live), (die_in_write,), (harm_disk, kill),
    (outage, crash), (redeliver, crash), (break_broker, kill), (replace_live, restart_all),
    (rot, crash, stop),
]  # fmt: skip
"""A seed has one of these often: faults that meet are where bugs are."""

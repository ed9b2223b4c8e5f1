"""What the daemon does by itself when the world changes: `react` is a pure function, each rule is off or on.

Rules look at counts and alarms that the processes report, and answer with orders for the learner."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

import msgspec
import structlog
from msgspec import Meta

from actors.orders import Orders
from daemon.totals import Snapshot

log = structlog.get_logger()
RATE_S = 60.0  # over which the share of dead letters is taken
EVERY_S = 1.0  # between two samples of it
LEAST_BAD = 10  # dead letters in that time that are a rate
SHIFT = 0.25  # a field's stability index from where on it has moved: as the alert AfreshInputDrift

Reaction: TypeAlias = Literal["faster", "renew_reference", "adapt_normalisation", "pause"]
REACTIONS: tuple[Reaction, ...] = ("faster", "renew_reference", "adapt_normalisation", "pause")


class ReactionsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[reactions]`: rules by which the daemon acts without an operator."""

    faster: bool = False
    """After an alarm that embeddings have changed: more updates and sooner releases."""
    faster_for_s: Annotated[float, Meta(gt=0)] = 600.0
    faster_pace: Annotated[float, Meta(gt=1, le=100)] = 3.0
    """Times `learner.updates_per_record`, as far as `learner.cpu_share` lets it."""
    faster_release_s: Annotated[float, Meta(gt=0)] = 60.0
    renew_reference: bool = False
    """After an alarm, once the learner has learnt from the changed world: what comes next is the reference."""
    renew_after_s: Annotated[float, Meta(gt=0)] = 3600.0
    """... so long without too many dead letters, and embeddings are still others."""
    adapt_normalisation: bool = False
    """After a field has moved: mean and scale of what came last, kept only if entities then find themselves better."""
    pause: bool = True
    """While an alarm holds and too many records are dead letters, nothing is learnt."""
    pause_dead_letters: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    """Their share of all records of a minute."""


@dataclass(frozen=True)
class Seen:
    """What is known at a moment. Counts are since the daemon began."""

    now: float  # monotonic
    alarms: int = 0  # that embeddings have changed
    embeddings: bool = False  # they are beyond their threshold now
    inputs: bool = False  # some field has moved
    accepted: int = 0
    dead_letters: int = 0
    updates: int = 0


@dataclass(frozen=True)
class State:
    """What `react` remembers."""

    samples: tuple[tuple[float, int, int], ...] = ()  # time, accepted, dead letters
    alarms: int = 0
    inputs: bool = False
    faster_until: float = float("-inf")
    healthy_since: float | None = None  # an alarm waits for the reference to be renewed since then
    updates: int = 0  # at that moment
    paused: bool = False


@dataclass(frozen=True)
class Decision:
    """`began`: reactions that begin now. Renewal and adaptation are done once, the others last."""

    orders: Orders
    began: tuple[Reaction, ...] = ()


def react(config: ReactionsConfig, state: State, seen: Seen) -> tuple[State, Decision]:
    """Orders for the learner; what follows from the same state and the same facts is the same."""
    c, now, began = config, seen.now, list[Reaction]()
    samples = _sampled(state.samples, seen)
    poisoned = _share(samples, seen) > c.pause_dead_letters
    paused = c.pause and poisoned and (seen.embeddings or seen.inputs)
    if paused and not state.paused:
        began.append("pause")
    alarmed = seen.alarms > state.alarms
    faster_until = state.faster_until
    if c.faster and alarmed:
        if now >= faster_until:
            began.append("faster")
        faster_until = now + c.faster_for_s
    since, updates = state.healthy_since, state.updates
    if c.renew_reference:
        if since is None and alarmed:
            since, updates = now, seen.updates
        if since is not None and poisoned:
            since, updates = now, seen.updates
        if since is not None and now - since >= c.renew_after_s and seen.updates > updates:
            if seen.embeddings:  # else it was chance, or has passed
                began.append("renew_reference")
            since = None
    if c.adapt_normalisation and seen.inputs and not state.inputs:
        began.append("adapt_normalisation")
    fast = now < faster_until
    orders = Orders(
        paused,
        c.faster_pace if fast else 1.0,
        c.faster_release_s if fast else float("inf"),
    )
    after = State(samples, seen.alarms, seen.inputs, faster_until, since, updates, paused)
    return after, Decision(orders, tuple(began))


def _sampled(
    samples: tuple[tuple[float, int, int], ...], seen: Seen
) -> tuple[tuple[float, int, int], ...]:
    """With this moment's counts where it is time for a sample; the oldest is as old as the rate asks for."""
    if samples and seen.now - samples[-1][0] < EVERY_S:
        return samples
    kept = (*samples, (seen.now, seen.accepted, seen.dead_letters))
    old = sum(at <= seen.now - RATE_S for at, _, _ in kept)
    return kept[max(old - 1, 0) :]


def _share(samples: tuple[tuple[float, int, int], ...], seen: Seen) -> float:
    """Of the records since the oldest sample, how many were dead letters."""
    _, accepted, dead = samples[0]
    bad, good = seen.dead_letters - dead, seen.accepted - accepted
    return bad / (bad + good) if bad >= LEAST_BAD else 0.0


@dataclass
class Reactions:
    """The daemon's side: what is seen of the processes, what was decided, how often."""

    config: ReactionsConfig
    counts: dict[str, int] = field(default_factory=dict)
    paused: bool = False
    _state: State | None = None

    def turn(self, now: float, known: Snapshot) -> Decision:
        seen = _seen(now, known)
        if self._state is None:  # alarms from before are not news
            self._state = State(alarms=seen.alarms)
        before, (self._state, decision) = self._state, react(self.config, self._state, seen)
        for reaction in decision.began:
            self.counts[reaction] = self.counts.get(reaction, 0) + 1
            log.warning("reaction", reaction=reaction, next=NEXT[reaction])
        if before.paused and not decision.orders.paused:
            log.warning("learning_goes_on")
        self.paused = decision.orders.paused
        return decision


NEXT: dict[Reaction, str] = {
    "faster": "more updates and sooner releases for reactions.faster_for_s",
    "renew_reference": "drift is measured against what comes now",
    "adapt_normalisation": "tried on a copy; the learner says whether it is kept",
    "pause": "nothing is learnt until the alarm or the dead letters end; vectors go on",
}


def _seen(now: float, known: Snapshot) -> Seen:
    shards, learner = known.shards.values(), known.learner
    dead = sum(sum(shard.dead_letters.values()) for shard in shards)
    seen = Seen(now, accepted=sum(shard.accepted for shard in shards), dead_letters=dead)
    if learner is None:
        return seen
    return dataclasses.replace(
        seen,
        alarms=learner.drift_alarms,
        embeddings=learner.drift_embedding > 1.0,
        inputs=any(psi > SHIFT for psi in learner.drift_psi.values()),
        updates=learner.updates,
    )

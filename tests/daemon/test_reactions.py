"""Rules that act without an operator: a pure function, whatever happens in whatever order."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.orders import Orders
from daemon.reactions import Decision, Reactions, ReactionsConfig, Seen, State, react
from daemon.totals import Snapshot
from schemas.stats import LearnerStats, ShardStats

ALL = ReactionsConfig(faster=True, renew_reference=True, adapt_normalisation=True)
OFF = ReactionsConfig(pause=False)
NOTHING = Orders()


def run(config: ReactionsConfig, seen: list[Seen]) -> list[Decision]:
    state, decisions = State(), []
    for each in seen:
        state, decision = react(config, state, each)
        decisions.append(decision)
    return decisions


def begun(decisions: list[Decision]) -> list[str]:
    return [reaction for decision in decisions for reaction in decision.began]


@st.composite
def histories(draw: st.DrawFn) -> list[Seen]:
    """What a daemon sees: time and counts never fall."""
    seen = Seen(draw(st.floats(0, 1e6)))
    found = [seen]
    for _ in range(draw(st.integers(1, 40))):
        seen = Seen(
            seen.now + draw(st.floats(0.1, 100)),
            seen.alarms + draw(st.integers(0, 1)),
            draw(st.booleans()),
            draw(st.booleans()),
            seen.accepted + draw(st.integers(0, 1000)),
            seen.dead_letters + draw(st.integers(0, 1000)),
            seen.updates + draw(st.integers(0, 2)),
        )
        found.append(seen)
    return found


@given(histories())
@settings(max_examples=30)
def test_what_is_off_does_nothing(seen: list[Seen]) -> None:
    assert all(decision == Decision(NOTHING) for decision in run(OFF, seen))


@given(histories())
@settings(max_examples=30)
def test_learning_is_paused_only_while_an_alarm_holds_and_records_are_bad(seen: list[Seen]) -> None:
    for at, decision in enumerate(run(ALL, seen)):
        if decision.orders.paused:
            assert seen[at].embeddings or seen[at].inputs
            assert seen[at].dead_letters > seen[0].dead_letters


@given(histories())
@settings(max_examples=30)
def test_it_goes_on_by_itself(seen: list[Seen]) -> None:
    """When the bad records end, whatever alarms still hold."""
    last = seen[-1]
    quiet = [
        Seen(last.now + s, last.alarms, True, True, last.accepted + 10 * s, last.dead_letters)
        for s in range(1, 65)
    ]  # fmt: skip
    assert not run(ALL, seen + quiet)[-1].orders.paused


@given(histories())
@settings(max_examples=30)
def test_each_beginning_is_told_once(seen: list[Seen]) -> None:
    decisions = run(ALL, seen)
    paused = [decision.orders.paused for decision in decisions]
    starts = sum(now and not before for before, now in zip([False, *paused], paused, strict=False))
    assert begun(decisions).count("pause") == starts
    moved = [s.inputs for s in seen]
    starts = sum(now and not before for before, now in zip([False, *moved], moved, strict=False))
    assert begun(decisions).count("adapt_normalisation") == starts


@given(histories())
@settings(max_examples=30)
def test_the_reference_is_renewed_after_an_alarm_and_with_learning_alone(seen: list[Seen]) -> None:
    decisions = run(ALL, seen)
    renewed = [at for at, d in enumerate(decisions) if "renew_reference" in d.began]
    assert len(renewed) <= seen[-1].alarms
    for at in renewed:
        assert seen[at].embeddings
        assert seen[at].updates > seen[0].updates
        assert seen[at].now - seen[0].now >= ALL.renew_after_s


@pytest.mark.parametrize(("still", "begun_"), [(True, ["renew_reference"]), (False, [])])
def test_an_alarm_by_chance_renews_nothing(still: bool, begun_: list[str]) -> None:
    config = ReactionsConfig(renew_reference=True)
    last = Seen(1.0 + config.renew_after_s, alarms=1, embeddings=still, updates=9)
    assert begun(run(config, [Seen(0.0), Seen(1.0, alarms=1, embeddings=True), last])) == begun_


@given(histories())
@settings(max_examples=30)
def test_faster_ends_in_time(seen: list[Seen]) -> None:
    last_alarm = None
    before = 0
    for now, decision in zip(seen, run(ALL, seen), strict=True):
        if now.alarms > before:
            last_alarm = now.now
        before = now.alarms
        fast = last_alarm is not None and now.now < last_alarm + ALL.faster_for_s
        assert decision.orders.pace == (ALL.faster_pace if fast else 1.0)
        assert (decision.orders.release_s == ALL.faster_release_s) is fast


def test_a_poisoned_burst_pauses_and_a_clean_stream_does_not() -> None:
    clean = [Seen(float(s), embeddings=True, accepted=100 * s, dead_letters=s) for s in range(60)]
    assert not any(d.orders.paused for d in run(ReactionsConfig(), clean)), "one in a hundred"
    bad = [
        Seen(60.0 + s, embeddings=True, accepted=6000 + 50 * s, dead_letters=60 + 50 * s)
        for s in range(60)
    ]
    assert begun(run(ReactionsConfig(), clean + bad)) == ["pause"]
    alone = [Seen(s.now, accepted=s.accepted, dead_letters=s.dead_letters) for s in clean + bad]  # fmt: skip
    assert not begun(run(ReactionsConfig(), alone)), (
        "bad records alone: the producer's trouble, not the learner's"
    )


def test_a_few_bad_records_of_a_slow_stream_are_no_rate() -> None:
    slow = [Seen(float(s), inputs=True, accepted=s // 10, dead_letters=s // 10) for s in range(90)]
    assert not begun(run(ReactionsConfig(), slow))


def snapshot(learner: LearnerStats | None, dead: int) -> Snapshot:
    shard = ShardStats(accepted=100, dead_letters={"bad_time": dead})
    return Snapshot("s", {"shard-0": shard}, learner)


def test_what_the_daemon_has_seen_becomes_orders_and_counts() -> None:
    reactions = Reactions(ALL)
    learner = LearnerStats(drift_alarms=7, drift_psi={"amount": 0.1})
    assert reactions.turn(0.0, snapshot(learner, 0)).orders == NOTHING, "alarms from before"
    learner = LearnerStats(drift_alarms=8, drift_embedding=1.5, drift_psi={"amount": 0.4})
    decision = reactions.turn(1.0, snapshot(learner, 900))
    assert decision.orders == Orders(True, ALL.faster_pace, ALL.faster_release_s)
    assert reactions.counts == {"pause": 1, "faster": 1, "adapt_normalisation": 1}
    assert reactions.paused
    assert not reactions.turn(70.0, snapshot(learner, 900)).orders.paused


def test_without_a_learner_nothing_is_asked() -> None:
    reactions = Reactions(ALL)
    for now in range(3):
        assert reactions.turn(float(now), snapshot(None, 500 * now)) == Decision(NOTHING)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_that_means_nothing_is_refused(share: float) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"pause_dead_letters": share}, ReactionsConfig)

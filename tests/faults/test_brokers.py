"""Kafka dies, stops, gives transactions up: each record still counts once."""

import pytest

from benchmarks.faults import brokers
from benchmarks.faults.service import Service

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]


def test_kafka_is_killed(of: Service) -> None:
    outcome = brokers.killed(of, 1, 1)
    assert outcome.ok, outcome


def test_kafka_is_stopped_and_started(of: Service) -> None:
    outcome = brokers.stopped(of, 1, 2)
    assert outcome.ok, outcome


def test_records_of_transactions_that_were_given_up_are_never_seen(of: Service) -> None:
    outcome = brokers.aborted(of, 2, 3)
    assert outcome.ok, outcome

"""Kafka dies, stops, or no longer has what it had."""

import random
from contextlib import closing
from functools import partial
from typing import Any

import kafka

from benchmarks.faults.outcome import Outcome, rounds_of
from benchmarks.faults.service import GROUPS, Service, until


def killed(of: Service, rounds: int, seed: int) -> Outcome:
    def act(_: random.Random) -> None:
        of.kafka.kill()
        of.kafka.start()

    return rounds_of(of, "Kafka kill -9", rounds, seed, act)


def stopped(of: Service, rounds: int, seed: int) -> Outcome:
    def act(_: random.Random) -> None:
        of.kafka.stop(30)
        of.kafka.start()

    return rounds_of(of, "Kafka stopped and started", rounds, seed, act)


def aborted(of: Service, rounds: int, seed: int) -> Outcome:
    """Records of transactions that are given up are never seen; those that are committed count once."""
    with closing(_transactional(of)) as producer:

        def act(rng: random.Random) -> None:
            for commit in (False, True, False):
                producer.begin_transaction()
                names = [f"e{rng.randrange(of.entities)}" for _ in range(rng.randrange(1, 60))]
                pairs = of.made(names)
                for key, value in pairs:
                    producer.send(of.topic, key=key, value=value)
                producer.flush(30)
                if commit:
                    of.remember(pairs)
                    producer.commit_transaction()
                else:
                    producer.abort_transaction()

        return rounds_of(of, "aborted transactions", rounds, seed, act)


def _transactional(of: Service) -> Any:
    producer = kafka.KafkaProducer(
        bootstrap_servers=of.kafka.address, transactional_id=f"{of.topic}-faults"
    )
    producer.init_transactions()
    return producer


# -- what stops the stream, with instructions ---------------------------------------------------------


def retention_passed(of: Service) -> str:
    """Records are deleted before they were read. Returns what the daemon says; it must not go on."""
    assert of.process is not None
    assert of.stop() == 0
    of.send(400)
    parts = [kafka.TopicPartition(of.topic, g) for g in range(GROUPS)]
    with closing(kafka.KafkaAdminClient(bootstrap_servers=of.kafka.address)) as admin:
        ends = admin.list_partition_offsets(
            dict.fromkeys(parts, kafka.protocol.consumer.OffsetSpec.LATEST)
        )
        admin.delete_records({p: at.offset for p, at in ends.items()})
    return _refused(of, "retention")


def partitions_added(of: Service) -> str:
    """While the daemon runs."""
    with closing(kafka.KafkaAdminClient(bootstrap_servers=of.kafka.address)) as admin:
        admin.create_partitions({of.topic: GROUPS + 1})
    return _ends(of, "partitions")


def topic_deleted(of: Service) -> str:
    """While the daemon runs."""
    with closing(kafka.KafkaAdminClient(bootstrap_servers=of.kafka.address)) as admin:
        admin.delete_topics([of.topic])
    return _ends(of, "topic")


def _refused(of: Service, word: str) -> str:
    of.start()
    return _ends(of, word)


def _ends(of: Service, word: str) -> str:
    process = of.process
    assert process is not None
    until(lambda: process.poll() is not None, 60, of)
    assert process.returncode == 5, process.returncode
    until(partial(of.said, word), 1, of)
    return of.log.read_text(errors="replace").strip().splitlines()[-1]

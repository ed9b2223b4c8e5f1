"""Clients of kafka-python, closed for good where they fail."""

from typing import Any

import kafka.errors
from kafka.net.compat import KafkaNetClient


def connected(kind: Any, **options: Any) -> Any:
    """A consumer, producer or admin client. Where it cannot connect, nothing of it stays behind.

    Its constructor starts a thread, and raises without ending it."""
    made: list[Any] = []

    def network(**settings: Any) -> Any:
        made.append(KafkaNetClient(**settings))
        return made[-1]

    try:
        return kind(**options, kafka_client=network)
    except BaseException:
        for client in made:
            client.close()
        raise


def abandon(producer: Any) -> None:
    """Ends a producer with whatever it had not delivered; its `close` would wait for that."""
    producer._sender.force_close()
    producer._sender.join(5.0)
    try:
        producer.close(timeout=0)
    except (kafka.errors.KafkaError, OSError):
        return

"""Kafka over TLS and SASL: the right settings work end to end, wrong ones are named within the timeout."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import kafka as kafka_python
import numpy as np
import pytest

from actors.ports import Batch
from actors.source import KafkaDeadLetters, KafkaSource, SourceConfig, partitions
from schemas.errors import AfreshError, SettingsError, SourceDown, SourceError
from tests.helpers import client_threads, eventually
from tests.security.support import PASSWORD, Broker, Certificates

# A connection that kafka-python 3.0.12 could not make leaves its socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    eventually(lambda: not client_threads(), 15.0, "threads left behind")
    gc.collect()  # here, where that is no error


def produce(address: str, topic: str, *values: bytes) -> None:
    with closing(kafka_python.KafkaProducer(bootstrap_servers=address)) as producer:
        for value in values:
            producer.send(topic, value, partition=0)


def read(source: KafkaSource, count: int) -> list[bytes | None]:
    found: list[bytes | None] = []

    def more() -> bool:
        for batch in source.poll(100, 0.05):
            found.extend(batch.values)
        return len(found) >= count

    eventually(more, 20.0)
    return found


def dead(letters: KafkaDeadLetters) -> None:
    one = np.array([7])
    letters.send(Batch(0, 0, one, one, [b"k"], [b"{"], 8), 0, "not_json", "no", None)
    letters.flush()


def kept(plain: str, topic: str) -> list[bytes]:
    """The dead letters of a topic."""
    options: Any = {"bootstrap_servers": plain, "consumer_timeout_ms": 5000}
    with closing(kafka_python.KafkaConsumer(**options)) as reader:
        reader.assign([kafka_python.TopicPartition(f"{topic}.dlq", 0)])
        reader.seek_to_beginning()
        return [next(reader).value]


Settings = Callable[[], dict[str, Any]]


@pytest.fixture(params=["tls", "mutual", "sasl"])
def right(
    request: pytest.FixtureRequest,
    secured: Broker,
    certificates: Certificates,
    login: dict[str, str],
) -> dict[str, Any]:
    """Settings that each secured listener accepts."""
    only = {"security_protocol": "SSL", "ssl_cafile": str(certificates.ca)}
    ours = certificates.client
    more: dict[str, dict[str, str]] = {
        "tls": only,
        "mutual": only | {"ssl_certfile": str(ours.cert), "ssl_keyfile": str(ours.key)},
        "sasl": login | {"username": "root"},
    }
    return {"brokers": getattr(secured, request.param), **more[request.param]}


def test_records_come_and_dead_letters_go(
    right: dict[str, Any], secured: Broker, topic: str
) -> None:
    produce(secured.plain, topic, b"1", b"2")
    config = SourceConfig(topics=(topic,), **right)
    assert partitions(config) == 1
    with closing(KafkaSource(config, "test", 1)) as source:
        source.start(0, None)
        assert read(source, 2) == [b"1", b"2"]
    with closing(KafkaDeadLetters(config, "test")) as letters:
        dead(letters)
    assert kept(secured.plain, topic) == [b"{"]


def wrong(case: str, broker: Broker, made: Certificates, login: dict[str, str]) -> dict[str, Any]:
    ssl = {"security_protocol": "SSL", "ssl_cafile": str(made.ca)}
    stranger = {"ssl_certfile": str(made.stranger.cert), "ssl_keyfile": str(made.stranger.key)}
    cases: dict[str, dict[str, Any]] = {
        "password": {"brokers": broker.sasl, **login},
        "user": {"brokers": broker.sasl, **login, "username": "nobody"},
        "mechanism": {"brokers": broker.sasl, **login, "sasl_mechanism": "PLAIN"},
        "authority": {"brokers": broker.tls, **ssl, "ssl_cafile": str(made.other_ca)},
        "no authority": {"brokers": broker.tls, "security_protocol": "SSL"},
        "name": {"brokers": broker.tls.replace("127.0.0.1", "localhost"), **ssl},
        "plain to TLS": {"brokers": broker.tls},
        "TLS to plain": {"brokers": broker.plain, **ssl},
        "SASL to TLS": {"brokers": broker.tls, **login},
        "TLS to SASL": {"brokers": broker.sasl, **ssl},
        "no certificate": {"brokers": broker.mutual, **ssl},
        "strange certificate": {"brokers": broker.mutual, **ssl, **stranger},
    }
    return cases[case]


NAMED = {
    "password": "refuses the name or the password of the user 'afresh': see source.username, "
    "source.password_file and source.sasl_mechanism (SCRAM-SHA-512)",
    "user": "refuses the name or the password of the user 'nobody'",
    "mechanism": "See source.security_protocol and source.sasl_mechanism",
    "authority": "not of an authority that we trust: see source.ssl_cafile",
    "no authority": "not of an authority that we trust: see source.ssl_cafile",
    "name": "for another name than source.brokers has",
    "plain to TLS": "is source.security_protocol PLAINTEXT the listener's?",
    "TLS to plain": "does not speak TLS there, see source.security_protocol",
    "SASL to TLS": "source.security_protocol",
    "TLS to SASL": "is source.security_protocol SSL the listener's?",
    "no certificate": "wants a certificate of ours that it trusts: see source.ssl_certfile",
    "strange certificate": "wants a certificate of ours that it trusts: see source.ssl_certfile",
}


@pytest.mark.parametrize("case", NAMED)
def test_what_is_wrong_is_named_in_time(
    case: str, secured: Broker, certificates: Certificates, login: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    given = wrong(case, secured, certificates, login)
    if case == "password":
        Path(login["password_file"]).write_text("wrong-" + PASSWORD)
    config = SourceConfig(topics=("t",), timeout_s=6.0, **given)
    caplog.set_level(logging.WARNING)
    with pytest.raises((SourceDown, SourceError)) as caught:
        partitions(config)
    assert NAMED[case] in str(caught.value)
    assert PASSWORD not in str(caught.value) + repr(caught.value) + caplog.text
    assert "\n" not in str(caught.value)


def test_dead_letters_say_why_they_wait(secured: Broker, topic: str, login: dict[str, str]) -> None:
    Path(login["password_file"]).write_text("wrong")
    config = SourceConfig(secured.sasl, (topic,), timeout_s=1.5, **login)  # type: ignore[arg-type]
    with closing(KafkaDeadLetters(config, "test")) as letters:
        with pytest.raises(
            SourceDown, match=r"1 dead letters are not durable.*source\.password_file"
        ):
            dead(letters)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"ssl_cafile": "none.pem"}, "source.ssl_cafile none.pem cannot be read: No such file"),
        ({"ssl_cafile": "empty"}, "source.ssl_cafile empty holds no certificate"),
        ({"ssl_certfile": "cert", "ssl_keyfile": "none"}, "source.ssl_keyfile none cannot be read"),
        ({"ssl_certfile": "cert", "ssl_keyfile": "other"}, "are no certificate and its key"),
        ({"ssl_certfile": "cert", "ssl_keyfile": "locked"}, "the key without a password"),
    ],
)
def test_files_that_cannot_be_used_are_named_before_connecting(
    given: dict[str, str], says: str, certificates: Certificates, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from tests.security.support import openssl

    monkeypatch.chdir(tmp_path)
    made = certificates.client
    Path("empty").touch()
    Path("cert").write_bytes(made.cert.read_bytes())
    Path("other").write_bytes(certificates.server.key.read_bytes())
    openssl(
        "ec", "-in", str(made.key), "-aes256", "-passout", "pass:secret-of-key", "-out", "locked"
    )
    with pytest.raises(SettingsError) as caught:
        SourceConfig("h:1", ("t",), security_protocol="SSL", **given).client()  # type: ignore[arg-type]
    assert says in str(caught.value)


@pytest.mark.parametrize("given", [{"ssl_cafile": "ca"}, {"ssl_certfile": "c", "ssl_keyfile": "k"}])
def test_tls_files_without_tls_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(AfreshError, match=r"nothing would be encrypted\. Set SSL or SASL_SSL"):
        SourceConfig("h:1", ("t",), **given)  # type: ignore[arg-type]

"""Secured servers: one broker with a listener of each kind, a proxy that speaks TLS in front of Redis.

Certificates are made by the openssl command; where it is missing these tests are skipped."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import servers
from daemon.children import HOST, free_ports
from tests.security.support import (
    PASSWORD,
    USER,
    Broker,
    Certificates,
    add_user,
    authority,
    broker_settings,
    signed,
)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    ours, other = authority(folder, "ours"), authority(folder, "other")
    here = f"IP:{HOST}"
    return Certificates(
        ours.cert,
        other.cert,
        signed(folder, "server", ours, here),
        signed(folder, "elsewhere", ours, "DNS:redis.example.org"),
        signed(folder, "client", ours, here),
        signed(folder, "stranger", other, here),
    )


# -- Kafka ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def secured(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("secured-kafka")
    tls, mutual, sasl = (f"{HOST}:{port}" for port in free_ports(3))
    listeners = {"TLS": tls, "MUTUAL": mutual, "SASL": sasl}
    settings = broker_settings(folder, certificates)
    with servers.kafka_server(folder, settings=settings, listeners=listeners) as server:
        add_user(server.address, USER, PASSWORD)  # has no rights, "root" has all
        add_user(server.address, "root", PASSWORD)
        yield Broker(server.address, tls, mutual, sasl)


@pytest.fixture
def topic(secured: Broker, stream: str) -> str:
    """A topic of this test's own, on the secured broker."""
    servers.create_topics(secured.plain, {stream: 1})
    return stream


@pytest.fixture
def login(certificates: Certificates, tmp_path: Path) -> dict[str, str]:
    """The settings of [source] with which USER comes in at `sasl`."""
    file = tmp_path / "kafka-password"
    file.write_text(PASSWORD + "\n")
    return {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "username": USER,
        "password_file": str(file),
        "ssl_cafile": str(certificates.ca),
    }


@pytest.fixture(scope="session")
def own_redis(redis_server: str) -> str:
    """A Redis whose users may be changed: ours."""
    if "AFRESH_REDIS" in os.environ:
        pytest.skip("a server that is not ours keeps its users")
    return redis_server

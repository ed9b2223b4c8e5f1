"""`[source]`: which topics of which Kafka, from where, and how to reach it."""

import logging
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from actors import secret, tls
from schemas.errors import SettingsError

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

TLS_KEYS = tls.Keys(
    "source.ssl_cafile", "source.ssl_certfile", "source.ssl_keyfile", "source.brokers",
    "source.security_protocol",
)  # fmt: skip
MAX_SKEW_S = 86_400.0
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_BROKER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")


class DlqConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[source.dlq]`: where records go that cannot be used."""

    suffix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = ".dlq"
    max_bytes: Annotated[int, Meta(ge=65_536)] = 768 << 10
    """Of a larger value the first 64 KB go, and its SHA-256."""
    partitions: Annotated[int, Meta(ge=1)] = 1
    """Where the topic is missing and is created."""


class SourceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[source]`. Passwords are named by file or environment variable, and read when connecting."""

    brokers: str | tuple[str, ...]  # host:port; a list, or one text with commas
    topics: tuple[str, ...]
    group: str = ""  # where lag tools find our positions; default: afresh-<stream>
    start: str | int = "earliest"  # earliest | latest | ISO 8601 with a zone | epoch ms
    mirror_topic: str = ""  # of a graph with several partitions; default: <stream>.mirror
    check_partition: bool | None = None  # default: where there are several topics
    max_skew_s: Annotated[float, Meta(ge=0)] | None = None
    """Event time that a partition may be ahead of the others; 0: any. Default: any, of a graph's nodes MAX_SKEW_S."""
    max_records_bytes: Annotated[int, Meta(ge=65_536)] = 16 << 20  # of one answer of a broker
    max_partition_bytes: Annotated[int, Meta(ge=65_536)] = 2 << 20  # of one partition in it
    max_expanded_bytes: Annotated[int, Meta(ge=65_536)] = 256 << 20  # of one compressed batch
    timeout_s: Annotated[float, Meta(ge=1, le=300)] = 10.0
    security_protocol: Protocol = "PLAINTEXT"
    sasl_mechanism: Mechanism | None = None
    username: str = ""
    password_env: str = ""
    password_file: str = ""
    ssl_cafile: str = ""
    ssl_certfile: str = ""
    ssl_keyfile: str = ""
    dlq: DlqConfig = DlqConfig()

    def __post_init__(self) -> None:
        for host in self.hosts:
            if not _BROKER.fullmatch(host):
                raise SettingsError(f"source.brokers has {host!r}; needed is host:port.")
        if not self.hosts:
            raise SettingsError("source.brokers is empty; name at least one host:port.")
        if not self.topics:
            raise SettingsError("source.topics is empty; name at least one topic.")
        for topic in self.topics:
            if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
                raise SettingsError(f"source.topics has {topic!r}, which is no topic's name.")
            if self.topics.count(topic) > 1:
                raise SettingsError(f"source.topics names {topic!r} twice; remove one.")
            if topic + self.dlq.suffix in self.topics:
                raise SettingsError(
                    f"source.topics names {topic!r} and its own dead letters; remove the latter, "
                    "or change source.dlq.suffix."
                )
        if self.mirror_topic and not _TOPIC.fullmatch(self.mirror_topic):
            raise SettingsError(f"source.mirror_topic is {self.mirror_topic!r}, no topic's name.")
        start_ms(self.start)
        self._check_security()

    def _check_security(self) -> None:
        sasl = self.security_protocol.startswith("SASL")
        if sasl != (self.sasl_mechanism is not None):
            raise SettingsError(
                f"source.security_protocol is {self.security_protocol} and source.sasl_mechanism "
                f"is {self.sasl_mechanism}: SASL_PLAINTEXT and SASL_SSL need one, others none."
            )
        if sasl and not (self.username and (self.password_env or self.password_file)):
            raise SettingsError(
                "source.sasl_mechanism needs source.username, and source.password_file or "
                "source.password_env."
            )
        if self.password_env and self.password_file:
            raise SettingsError("source.password_env and source.password_file: keep one of them.")
        if bool(self.ssl_certfile) != bool(self.ssl_keyfile):
            raise SettingsError("source.ssl_certfile and source.ssl_keyfile: give both or none.")
        if (self.ssl_cafile or self.ssl_certfile) and "SSL" not in self.security_protocol:
            raise SettingsError(
                f"source.ssl_cafile or ssl_certfile is set and source.security_protocol is "
                f"{self.security_protocol}: nothing would be encrypted. Set SSL or SASL_SSL."
            )

    def with_mirror(self, stream_name: str) -> "SourceConfig":
        """The mirror is one more topic, the last."""
        mirror = self.mirror_topic or f"{stream_name}.mirror"
        if mirror in self.topics:
            raise SettingsError(
                f"source.topics names {mirror!r}, which is the mirror of the stream: only afresh writes "
                "there. Remove it, or set source.mirror_topic."
            )
        return msgspec.structs.replace(self, topics=(*self.topics, mirror), mirror_topic=mirror)

    @property
    def hosts(self) -> list[str]:
        listed = self.brokers.split(",") if isinstance(self.brokers, str) else self.brokers
        return [host.strip() for host in listed if host.strip()]

    @property
    def password_key(self) -> str:
        """The setting that names the password."""
        return "source.password_env" if self.password_env else "source.password_file"

    @property
    def checks_partition(self) -> bool:
        """Whether a record whose entity belongs to another partition is a dead letter."""
        several = len(self.topics) > 1
        return several if self.check_partition is None else self.check_partition

    def max_skew_us(self, nodes: bool) -> int:
        """0: partitions do not wait for each other. nodes: entities are a graph's, with edges in all partitions."""
        default = MAX_SKEW_S if nodes else 0.0
        return round(1e6 * (default if self.max_skew_s is None else self.max_skew_s))

    def client(self) -> dict[str, Any]:
        """What every client of kafka-python needs. Holds the password: never log it."""
        logger = logging.getLogger("kafka")
        if logger.level == logging.NOTSET:  # an outage would fill the log: we report it, once
            logger.setLevel(logging.CRITICAL)
        wait_ms = round(self.timeout_s * 1000)
        options: dict[str, Any] = {
            "bootstrap_servers": self.hosts,
            "client_id": "afresh",
            "security_protocol": self.security_protocol,
            "request_timeout_ms": wait_ms,
            "bootstrap_timeout_ms": wait_ms,
            "reconnect_backoff_max_ms": 1000,
        }
        tls.check_files(TLS_KEYS, self.ssl_cafile, self.ssl_certfile, self.ssl_keyfile)
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
            if getattr(self, name):
                options[name] = getattr(self, name)
        if self.sasl_mechanism is not None:
            options["sasl_mechanism"] = self.sasl_mechanism
            options["sasl_plain_username"] = self.username
            password = secret.read("source.password", self.password_env, self.password_file)
            options["sasl_plain_password"] = password
        return options


def start_ms(start: str | int) -> int | None:
    """The instant that `source.start` names, in epoch ms; None for earliest and latest."""
    if start in ("earliest", "latest"):
        return None
    if isinstance(start, int):
        if start >= 0:
            return start
    else:
        try:
            moment = datetime.fromisoformat(start)
        except ValueError:
            moment = None
        if moment is not None and moment.tzinfo is None:
            raise SettingsError(
                f"source.start is {start!r}, without a time zone. Write it as {start}Z or +02:00 "
                "at its end; a day needs its time, such as 2024-01-31T00:00Z."
            )
        if moment is not None:
            return max(0, round((moment - datetime.fromtimestamp(0, UTC)).total_seconds() * 1000))
    raise SettingsError(
        f'source.start is {start!r}; needed is "earliest", "latest", a time such as '
        '"2024-01-31T00:00Z", or milliseconds since 1970.'
    )

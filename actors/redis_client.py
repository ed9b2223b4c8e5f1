"""A connection to Redis with explicit timeouts, no hidden retries, and a breaker."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, cast
from urllib.parse import unquote, urlsplit

import msgspec
import redis
from msgspec import Meta
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    NoScriptError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from actors import secret, tls
from schemas.errors import SettingsError, SinkDown

Positive = Annotated[float, Meta(gt=0)]
OLDEST = (6, 2)
TLS_KEYS = tls.Keys(
    "redis.tls_ca_file", "redis.tls_cert_file", "redis.tls_key_file", "redis.url", "redis.url"
)


class RedisConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[redis]`: where embeddings are written, and for how long they stay."""

    url: str = "redis://127.0.0.1:6379/0"  # redis://, rediss:// (TLS) or unix:///path; no password
    username: str = ""
    password_env: str = ""  # name of an environment variable
    password_file: str = ""
    tls_ca_file: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    tls_verify: bool = True
    timeout_s: Positive = 2.0
    ttl_s: Annotated[float, Meta(ge=0)] = 30 * 86400.0  # of an embedding not written; 0: for ever
    deleted_ttl_s: Positive = 86400.0  # how long a late retry cannot bring back what was deleted
    batch_keys: Annotated[int, Meta(ge=1, le=2000)] = 50  # entities per script call
    releases_kept: Annotated[int, Meta(ge=1)] = 1000  # entries of the stream of releases
    retry_first_s: Positive = 0.1  # the breaker's first pause, doubled up to
    retry_most_s: Positive = 5.0

    def __post_init__(self) -> None:
        parts = _split(self.url)
        if parts.password is not None:
            raise SettingsError(
                "redis.url holds a password; name it in redis.password_env or redis.password_file."
            )
        if parts.query or parts.fragment:
            raise SettingsError("redis.url has options behind '?'; write them as keys of [redis].")
        if self.password_env and self.password_file:
            raise SettingsError("redis.password_env and redis.password_file: set one of them.")
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise SettingsError("redis.tls_cert_file and redis.tls_key_file belong together.")
        if (self.tls_ca_file or self.tls_cert_file) and parts.scheme != "rediss":
            raise SettingsError(
                f"redis.tls_ca_file or tls_cert_file is set and redis.url begins with {parts.scheme}://: "
                "nothing would be encrypted. Write rediss://HOST:PORT/DB."
            )

    @property
    def address(self) -> str:
        parts = _split(self.url)
        return parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"

    def password(self) -> str | None:
        """Read when it is used, never kept in the settings."""
        return secret.read("redis.password", self.password_env, self.password_file)


def _split(url: str) -> Any:
    parts = urlsplit(url)
    try:
        good = parts.scheme == "unix" or (bool(parts.hostname) and parts.port != 0)
        good &= parts.scheme in ("redis", "rediss", "unix")
        good &= parts.scheme == "unix" or parts.path.strip("/").isdigit() or not parts.path[1:]
    except ValueError:
        good = False
    if not good:
        raise SettingsError(
            "redis.url must be redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH."
        )
    return parts


def connect(config: RedisConfig, on_connect: Callable[[Any], None]) -> redis.Redis:
    """A client that tries each command once; nothing is sent yet. Raises SettingsError.

    `on_connect` gets each new connection and must call its on_connect()."""
    parts = _split(config.url)
    where: dict[str, Any] = {"unix_socket_path": parts.path}
    if parts.scheme != "unix":
        where = {"host": parts.hostname, "port": parts.port or 6379}
        where["db"] = int(parts.path.strip("/") or 0)
    if parts.scheme == "rediss":
        tls.check_files(TLS_KEYS, config.tls_ca_file, config.tls_cert_file, config.tls_key_file)
        where |= {
            "ssl": True,
            "ssl_cert_reqs": "required" if config.tls_verify else "none",
            "ssl_check_hostname": config.tls_verify,
            "ssl_ca_certs": config.tls_ca_file or None,
            "ssl_certfile": config.tls_cert_file or None,
            "ssl_keyfile": config.tls_key_file or None,
        }
    user = config.username or unquote(parts.username or "") or None
    return redis.Redis(
        **where,
        username=user,
        password=config.password(),
        socket_timeout=config.timeout_s,
        socket_connect_timeout=config.timeout_s,
        retry=Retry(NoBackoff(), 0),  # a retried command was applied twice
        retry_on_error=[],
        health_check_interval=0,
        protocol=2,
        client_name="afresh",
        redis_connect_func=cast(Any, on_connect),  # its type hint forgets the connection
    )


class Breaker:
    """After a failure refuses at once for a while, twice as long each time, then tries again."""

    def __init__(self, config: RedisConfig, clock: Callable[[], float]) -> None:
        self._config, self._clock = config, clock
        self._failures, self._until = 0, 0.0
        self._reason = ""

    @contextmanager
    def guard(self, proves: bool = True) -> Iterator[None]:
        """Around one exchange: turns Redis's failures into SinkDown. NoScriptError passes.

        proves: its success shows that Redis works; a ping does not, since a Redis that is full or a
        replica answers it and takes no write."""
        where = f"Redis at {self._config.address}"
        left = self._until - self._clock()
        if self._failures and left > 0:
            raise SinkDown(f"{where}: {self._reason}; tried again in {left:.1f} s")
        try:
            yield
        except NoScriptError:
            raise
        except (RedisError, OSError) as why:
            self._reason = explain(why, self._config)
            pause = self._config.retry_first_s * 2.0 ** min(self._failures, 30)
            self._until = self._clock() + min(pause, self._config.retry_most_s)
            self._failures += 1
            raise SinkDown(f"{where}: {self._reason}") from None
        if proves:
            self._failures = 0


def explain(why: Exception, config: RedisConfig) -> str:
    """What Redis or the network said, without arguments of ours and without secrets."""
    if isinstance(why, AuthenticationError):
        return (
            "it refuses the name or the password; see redis.username and redis.password_file (or "
            "password_env)"
        )
    if isinstance(why, NoPermissionError) or "NOPERM" in str(why) or "ACL failure" in str(why):
        return f"it refuses a right: {str(why)[:200]}. Grant it to redis.username; docs/security.md has the line"
    if isinstance(why, ResponseError):
        return f"it answered: {str(why)[:200]}"
    if handshake := tls.meaning(why, TLS_KEYS):
        return f"{handshake} ({str(why)[:200]})"
    asked = ""
    if isinstance(why, redis.TimeoutError) and config.url.startswith("rediss"):
        asked = "; does it speak TLS there? See redis.url"
    return f"no answer ({type(why).__name__}: {str(why)[:200]}){asked}"


def check_server(client: redis.Redis, config: RedisConfig) -> list[str]:
    """Refuses a server that cannot serve (SettingsError); returns warnings for the operator."""
    info: Any = client.info()
    if info.get("redis_mode") == "cluster" or info.get("cluster_enabled"):
        raise SettingsError(
            f"redis.url: {config.address} is a Redis Cluster, which afresh does not support yet. "
            "Name a single server, or the primary of a Sentinel set."
        )
    version = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        raise SettingsError(
            f"redis.url: {config.address} is Redis {version}; afresh needs 6.2 or newer, or Valkey."
        )
    warnings = []
    if not config.tls_verify:
        danger = "whoever stands between may read and change everything"
        warnings.append(
            f"redis.tls_verify is false: {danger}. Name the authority in redis.tls_ca_file."
        )
    policy = info.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        return warnings
    danger = "when its memory is full it drops embeddings without a word"
    remedy = "Set `maxmemory-policy noeviction` in redis.conf."
    return [
        *warnings, f"Redis at {config.address} has maxmemory-policy {policy}: {danger}. {remedy}"
    ]  # fmt: skip

"""The settings of a service: one TOML file, one frozen tree. Each section's class lives beside its owner."""

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from actors import secret
from actors.candidate import ReleaseConfig
from actors.capacity import StateConfig, capacity
from actors.decode import DecodeConfig, make_decoder
from actors.labels import LabelsConfig
from actors.redis_client import RedisConfig, connect
from actors.shard_config import ShardConfig
from actors.source import SourceConfig
from daemon.reactions import ReactionsConfig
from learning.config import (
    FITTING,
    OF_IMAGES,
    EncoderConfig,
    GraphmaeConfig,
    GruConfig,
    LearnerConfig,
    ReplayConfig,
)
from learning.config_images import ImageViews
from schemas.errors import AfreshError, SettingsError
from schemas.stream import StreamConfig, Unit


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[http]`: /metrics, /healthz, /readyz and the status. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 9464
    token_file: str = ""
    token_env: str = ""  # name of an environment variable
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.token_env and self.token_file:
            raise SettingsError("http.token_env and http.token_file: keep one of them.")
        if not (self.token_env or self.token_file or self.insecure or _loopback(self.host)):
            raise SettingsError(
                f"http.host is {self.host!r}, which others may reach, and there is no token. Name one in "
                "http.token_file or http.token_env, or set http.host to 127.0.0.1; http.insecure = true "
                "lets everybody read."
            )

    def token(self) -> str | None:
        """What a client must send; None: nothing. Raises SettingsError where it could be guessed."""
        found = secret.read("http.token", self.token_env, self.token_file)
        if found is not None and not _TOKEN.fullmatch(found):
            raise SettingsError(
                "http.token_file or http.token_env: the token needs at least 16 letters, digits or signs of "
                "ASCII and no blanks. Make one: openssl rand -hex 32."
            )
        return found


_TOKEN = re.compile(r"[!-~]{16,4096}")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ServiceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[service]`: how the daemon watches over its processes."""

    lease_s: Annotated[float, Meta(ge=1)] = 10.0
    hang_s: Annotated[float, Meta(ge=1)] = 60.0
    """A process whose loop has not turned for so long is replaced."""
    steady_s: Annotated[float, Meta(ge=1)] = 300.0
    """A process that ran for so long is forgiven its earlier restarts, each of which waits longer."""
    grace_s: Annotated[float, Meta(ge=1)] = 25.0
    """How long a stop may take: batches in hand, last snapshots."""
    object_store_mb: Annotated[int, Meta(ge=80)] = 200
    ray_folder: str = ""
    """Where Ray keeps its sockets and logs; default: a short path under the system's temporary folder."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole settings file."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    state_dir: str
    stream: StreamConfig
    source: SourceConfig
    decode: DecodeConfig = DecodeConfig()
    state: StateConfig = StateConfig()
    shard: ShardConfig = ShardConfig()
    encoder: EncoderConfig = GruConfig()
    learner: LearnerConfig = LearnerConfig()
    release: ReleaseConfig = ReleaseConfig()
    redis: RedisConfig = RedisConfig()
    reactions: ReactionsConfig = ReactionsConfig()
    labels: LabelsConfig = LabelsConfig()
    http: HttpConfig = HttpConfig()
    service: ServiceConfig = ServiceConfig()

    @property
    def folder(self) -> Path:
        """Everything durable of this service."""
        return Path(self.state_dir) / self.name

    @property
    def releases(self) -> Path:
        return self.folder / "releases"

    def group_folder(self, group: int) -> Path:
        return self.folder / f"group-{group}"


_REFERENCE = re.compile(r"\$\{(\w+)\}")


def parse(text: str, name: str = "the settings") -> Settings:
    """Settings from TOML. `${NAME}` in any text is the environment's NAME. Raises SettingsError."""
    try:
        raw = _expanded(msgspec.toml.decode(text), "")
        return msgspec.convert(_of_its_kind(raw), Settings)
    except SettingsError as error:
        raise SettingsError(f"{name}: {error}") from error
    except msgspec.ValidationError as error:
        cause = error.__cause__
        if isinstance(cause, AfreshError):
            raise SettingsError(f"{name}: {cause}") from error
        raise SettingsError(
            f"{name}: {_explained(str(error))} docs/operations.md lists every key."
        ) from error
    except msgspec.DecodeError as error:
        raise SettingsError(f"{name} is not TOML: {error}") from error


def _of_its_kind(raw: Any) -> Any:
    """With what a graph's encoder and objective are where nothing is said of them."""
    stream, learner = raw.get("stream"), raw.setdefault("learner", {})
    kind = stream.get("kind") if isinstance(stream, dict) else None
    if kind in ("graph", "image") and isinstance(learner, dict):
        unit: Unit = (
            "image" if kind == "image" else "graph" if stream.get("unit") == "graph" else "node"
        )
        encoders, objectives = FITTING[unit]
        raw.setdefault("encoder", {"name": _tag(encoders[0])})
        learner.setdefault("objective", [{"name": _tag(objectives[0])}])
        if unit == "image":
            _fill(learner, OF_IMAGES)
    return raw


def _fill(into: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Puts in what is not there, tables within tables too."""
    for key, value in defaults.items():
        if not isinstance(value, dict):
            into.setdefault(key, value)
        elif isinstance(inner := into.setdefault(key, {}), dict):
            _fill(inner, value)


_FIELD = re.compile(r"Object (contains unknown|missing required) field `(.*)`")


def _explained(text: str) -> str:
    """msgspec's text as the key and what to do about it."""
    what, _, where = text.partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    if found := _FIELD.fullmatch(what):
        unknown, field = found[1] == "contains unknown", f"{key}.{found[2]}".lstrip(".")
        if unknown:
            return f"{field}: there is no such key. Remove it, or mend its name."
        return f"{field} is missing. Set it."
    return f"{key or 'the top level'}: {what}. Change it."


def check(settings: Settings) -> None:
    """What only a file, the environment or two sections together can show. Raises SettingsError."""
    s = settings
    make_decoder(s.stream, s.decode)
    _check_graph(s)
    capacity(s.state, 1, s.stream.shape, s.encoder.window, s.encoder.kept)
    if s.labels.topic:
        s.labels.source(s.source, s.name)
        make_decoder(s.labels.stream, DecodeConfig())
    s.source.client()
    connect(s.redis, lambda _: None).close()  # sends nothing
    s.http.token()


def _check_graph(s: Settings) -> None:
    _check_kind(s)
    if not s.stream.nodes:
        if s.source.mirror_topic:
            found = (
                'stream.unit is "graph"' if s.stream.whole else f'stream.kind is "{s.stream.kind}"'
            )
            raise SettingsError(
                f"source.mirror_topic is for graphs whose nodes are embedded, and {found}. Remove it."
            )
        return
    s.source.with_mirror(s.name)
    if s.source.check_partition is False:
        raise SettingsError(
            "source.check_partition is false: the nodes of a graph are found in their partitions, by Kafka's "
            "murmur2 of their names. Key the topics by the edge's source, and remove it."
        )


def _check_kind(s: Settings) -> None:
    """Encoder and objectives are of the stream's kind and unit."""
    unit = s.stream.shape.unit
    encoders, objectives = FITTING[unit]
    kind = f'stream.kind is "{s.stream.kind}"'
    if s.stream.graph:
        kind += f' and stream.unit "{unit}"'
    if not isinstance(s.encoder, encoders):
        raise SettingsError(
            f'encoder.name is "{_tag(type(s.encoder))}" and {kind}, whose encoder is {_names(encoders)}. '
            "Change one of them."
        )
    if unit != "image" and s.learner.views != ImageViews():
        raise SettingsError(f"[learner.views] is for images, and {kind}. Remove it.")
    if unit != "image" and s.learner.replay.policy != ReplayConfig().policy:
        found = f'learner.replay.policy is "{s.learner.replay.policy}"'
        raise SettingsError(f"{found}, which is for images, and {kind}. Remove it.")
    for objective in s.learner.objective if s.learner.enabled else ():
        if not isinstance(objective, objectives):
            raise SettingsError(
                f'learner.objective is "{_tag(type(objective))}" and {kind}, which learns by '
                f"{_names(objectives)}. Name that in [[learner.objective]]."
            )
        if isinstance(objective, GraphmaeConfig) and not s.stream.node:
            raise SettingsError(
                'learner.objective is "graphmae", which foretells what nodes have of their own, and there is no '
                "[[stream.node]]. Add one, or name another objective."
            )


def _names(configs: Sequence[type[msgspec.Struct]]) -> str:
    """As "a", "b" or "c"."""
    *most, last = [f'"{_tag(config)}"' for config in configs]
    return f"{', '.join(most)} or {last}" if most else last


def _tag(config: type[msgspec.Struct]) -> str:
    return str(config.__struct_config__.tag)


def _expanded(value: object, key: str) -> object:
    match value:
        case dict():
            return {k: _expanded(v, f"{key}.{k}".lstrip(".")) for k, v in value.items()}
        case list():
            return [_expanded(v, f"{key}[{i}]") for i, v in enumerate(value)]
        case str():

            def lookup(found: re.Match[str]) -> str:
                name = found.group(1)
                if name not in os.environ:
                    raise SettingsError(
                        f"{key} names ${{{name}}}, which the environment does not have. Set it."
                    )
                return os.environ[name]

            return _REFERENCE.sub(lookup, value)
    return value


def load(path: Path) -> Settings:
    """Reads a settings file. Relative folders in it start at the working directory."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path} cannot be read: {error}. Name a TOML file of settings."
        ) from error
    return parse(text, str(path))

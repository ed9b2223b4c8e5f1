"""Redis: the documented user is enough for the whole contract, and nothing in its line is too much; TLS."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from actors.sink import Current, Sink
from daemon.reading import Reader
from daemon.settings import Settings, parse
from schemas.errors import AfreshError, SettingsError, SinkDown
from tests.contracts import test_sink_contract as contract
from tests.contracts.test_sink_contract import put, vectors
from tests.security.support import Certificates, documented, tls_proxy

PASSWORD = "pw-redis-8be24710aa"

Make = Callable[..., RedisConfig]


def line_of(user: str, stream: str) -> list[str]:
    """The words of the documented ACL SETUSER line, for a stream and a password."""
    (line,) = [line for line in documented("redis", "ACL SETUSER") if f" {user} " in line]
    return line.replace("orders", stream).replace("PASSWORD", PASSWORD).split()


@pytest.fixture
def user(own_redis: str, stream: str, tmp_path: Path) -> Iterator[Make]:
    """Settings of the documented user `afresh`, whose line may be changed by `edit`."""
    yield from users(own_redis, stream, tmp_path)


def users(url: str, stream: str, folder: Path) -> Iterator[Make]:
    name = f"afresh-{stream}"
    file = folder / "redis-password"
    file.write_text(PASSWORD + "\n")

    def make(edit: Callable[[str], str] = str, database: int = 0, **more: Any) -> RedisConfig:
        words = [edit(word) for word in line_of("afresh", stream)]
        words[2] = name
        with closing(redis.Redis.from_url(url)) as admin:
            admin.execute_command(*filter(None, words))
        where = f"{url}/{database}" if database else url
        given = {"url": where, "username": name, "password_file": str(file), "batch_keys": 3}
        return RedisConfig(**(given | more))

    yield make
    with closing(redis.Redis.from_url(url)) as admin:
        admin.acl_deluser(name)


# -- the whole contract, as that user -------------------------------------------------------------


@pytest.fixture(params=["redis_server", "redis62"])
def make(
    request: pytest.FixtureRequest, own_redis: str, stream: str, tmp_path: Path
) -> Iterator[Any]:
    """What tests/contracts/test_sink_contract.py takes its sinks from."""
    url = request.getfixturevalue(request.param)
    made: list[RedisSink] = []
    for of in users(url, stream, tmp_path):

        def new(of: Make = of) -> Sink:
            made.append(RedisSink(of(), stream))
            return made[-1]

        yield new
    for sink in made:
        sink.close()


globals().update(
    {
        name: test
        for name, test in vars(contract).items()
        if name.startswith("test_")
        and name != "test_a_stored_pair_never_decreases"  # makes its own
    }
)

# -- its line -------------------------------------------------------------------------------------


def everything(config: RedisConfig, stream: str) -> None:
    """One of each thing that the daemon asks of Redis."""
    with closing(RedisSink(config, stream)) as sink:
        assert sink.check() is not None
        sink.ping()
        sink.raise_fence(0, 7)
        put(sink, 7, 1, "a", "b")
        sink.write(0, 7, 2, 1, {"t": 1}, vectors(), ["a"])
        put(sink, 7, 3, "a")  # over a marker
        sink.publish_release(1, 1, {"onnx": b"x"}, "{}", epoch=4)
        sink.set_current(Current(1, 1, 4), epoch=4)
        sink.drop_release(2, epoch=4)
        sink.read(1, ["a"])
        sink.read_current()
        sink.server_changed()
    with closing(RedisSink(RedisConfig(**{**fields(config), "ttl_s": 0.0}), stream)) as for_ever:
        for_ever.raise_fence(0, 7)
        put(for_ever, 7, 4, "a")


def fields(config: RedisConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


GRANTED = [word for word in line_of("afresh", "s") if word.startswith("+")]


def test_all_of_it_is_enough(user: Make, own_redis: str, stream: str) -> None:
    everything(user(database=1), stream)


@pytest.mark.parametrize("right", GRANTED)
def test_nothing_of_it_is_too_much_and_what_is_missing_is_named(
    right: str, user: Make, own_redis: str, stream: str
) -> None:
    """Scripts are not there yet, so that SCRIPT LOAD is asked for."""
    with closing(redis.Redis.from_url(own_redis)) as admin:
        admin.script_flush()
        config = user(lambda word: "" if word == right else word, database=1)
        with pytest.raises(SinkDown) as caught:
            everything(config, stream)
        admin.execute_command("SELECT", 1)
    text = str(caught.value)
    assert "it refuses a right" in text and "docs/security.md has the line" in text
    assert right[1:].replace("|", ".") in re.sub(r"\W", ".", text.lower())
    assert PASSWORD not in text


def test_another_streams_keys_are_not_its_to_touch(user: Make, stream: str) -> None:
    with closing(RedisSink(user(), f"other-{stream}")) as sink:
        with pytest.raises(SinkDown, match=r"it refuses a right.*key"):
            sink.raise_fence(0, 7)


# -- who comes in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["wrong password", "unknown user", "no password"])
def test_who_is_refused_is_told_which_settings_to_see(
    case: str, user: Make, own_redis: str, stream: str, tmp_path: Path
) -> None:
    config = user()
    given = fields(config)
    if case == "wrong password":
        Path(config.password_file).write_text(f"not-{PASSWORD}")
    elif case == "unknown user":
        given["username"] = "nobody"
    else:
        given["password_file"] = ""
    with closing(RedisSink(RedisConfig(**given), stream)) as sink:
        with pytest.raises((SinkDown, SettingsError)) as caught:
            sink.ping()
    assert "redis.username and redis.password_file" in str(caught.value)
    assert PASSWORD not in str(caught.value)


def settings_of(config: RedisConfig, stream: str) -> Settings:
    text = f"""
name = "{stream}"
state_dir = "none"
stream = {{ entity = "e", time = "t", field = [{{ name = "x", type = "number" }}] }}
source = {{ brokers = "h:1", topics = ["t"] }}
redis = {{ url = "{config.url}", username = "{config.username}", password_file = "{config.password_file}" }}
"""
    return parse(text)


def test_the_map_of_the_page_needs_one_right_more_and_says_which(
    user: Make, own_redis: str, stream: str
) -> None:
    config = user()
    everything(config, stream)
    reader = Reader(settings_of(config, stream))
    with pytest.raises(SinkDown, match=r"it refuses a right.*scan"):
        reader.sample(10)
    with closing(redis.Redis.from_url(own_redis)) as admin:
        admin.execute_command("ACL", "SETUSER", config.username, "+scan")
    assert "a" in reader.sample(10).names


def test_readers_need_what_their_line_says(user: Make, own_redis: str, stream: str) -> None:
    config = user()
    everything(config, stream)
    name = f"reader-{stream}"
    words = line_of("reader", stream)
    words[2] = name
    with closing(redis.Redis.from_url(own_redis)) as admin:
        admin.execute_command(*words)
        reader = Reader(settings_of(RedisConfig(**{**fields(config), "username": name}), stream))
        assert reader.released()
        assert reader.lookup(["a", "nobody"])[0] is not None
        assert "a" in reader.everything()[0]
        admin.execute_command("ACL", "SETUSER", name, "-hmget")
        with pytest.raises(SinkDown, match=r"it refuses a right.*hmget"):
            reader.lookup(["a"])
        admin.execute_command("ACL", "SETUSER", name, "resetpass")
        with pytest.raises(SinkDown, match=r"redis\.username"):
            Reader(settings_of(RedisConfig(**{**fields(config), "username": name}), stream)).lookup(
                ["a"]
            )
        admin.acl_deluser(name)


# -- TLS ------------------------------------------------------------------------------------------


def over_tls(own_redis: str, port: int, **more: Any) -> RedisConfig:
    return RedisConfig(url=f"rediss://127.0.0.1:{port}/0", **more)


def refusal(config: RedisConfig, stream: str) -> str:
    with closing(RedisSink(config, stream)) as sink:
        with pytest.raises(SinkDown) as caught:
            sink.ping()
    return str(caught.value)


def test_tls_with_the_right_authority_works(
    own_redis: str, certificates: Certificates, stream: str
) -> None:
    with tls_proxy(own_redis.removeprefix("redis://"), certificates.server) as port:
        with closing(
            RedisSink(over_tls(own_redis, port, tls_ca_file=str(certificates.ca)), stream)
        ) as sink:
            assert sink.check() == []
            sink.raise_fence(0, 7)
            put(sink, 7, 1, "a")
            assert sink.read(1, ["a"])[0] is not None
        for given in ({}, {"tls_ca_file": str(certificates.other_ca)}):
            text = refusal(over_tls(own_redis, port, **given), stream)
            assert "not of an authority that we trust: see redis.tls_ca_file" in text
        with closing(RedisSink(over_tls(own_redis, port, tls_verify=False), stream)) as sink:
            (warning,) = sink.check()
            assert "redis.tls_verify is false" in warning
        plain = RedisConfig(url=f"redis://127.0.0.1:{port}/0")
        assert "no answer" in refusal(plain, stream)


def test_a_server_of_another_name_is_refused(
    own_redis: str, certificates: Certificates, stream: str
) -> None:
    with tls_proxy(own_redis.removeprefix("redis://"), certificates.elsewhere) as port:
        text = refusal(over_tls(own_redis, port, tls_ca_file=str(certificates.ca)), stream)
    assert "for another name than redis.url has" in text


def test_a_server_without_tls_is_named(
    own_redis: str, certificates: Certificates, stream: str
) -> None:
    port = int(own_redis.rsplit(":", 1)[1])
    config = over_tls(own_redis, port, tls_ca_file=str(certificates.ca), timeout_s=0.5)
    text = refusal(config, stream)
    assert "does it speak TLS there? See redis.url" in text or "does not speak TLS there" in text


def test_a_client_shows_its_certificate(
    own_redis: str, certificates: Certificates, stream: str
) -> None:
    made, ca = certificates, {"tls_ca_file": str(certificates.ca)}

    def shown(pem: Any) -> dict[str, str]:
        return {"tls_cert_file": str(pem.cert), "tls_key_file": str(pem.key)}

    with tls_proxy(own_redis.removeprefix("redis://"), made.server, client_ca=made.ca) as port:
        with closing(
            RedisSink(over_tls(own_redis, port, **ca, **shown(made.client)), stream)
        ) as sink:
            sink.ping()
        for more in ({}, shown(made.stranger)):
            text = refusal(over_tls(own_redis, port, **ca, **more), stream)
            assert "wants a certificate of ours that it trusts: see redis.tls_cert_file" in text


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"url": "redis://h:1", "tls_ca_file": "a"}, "nothing would be encrypted"),
        (
            {"url": "rediss://h:1", "tls_ca_file": "none.pem"},
            "redis.tls_ca_file none.pem cannot be",
        ),
        (
            {"url": "rediss://h:1", "tls_cert_file": "a", "tls_key_file": "b"},
            "redis.tls_cert_file a cannot be read",
        ),
    ],
)
def test_tls_that_cannot_be_is_refused_before_connecting(given: dict[str, str], says: str) -> None:
    with pytest.raises(AfreshError) as caught:
        RedisSink(RedisConfig(**given), "s")  # type: ignore[arg-type]
    assert says in str(caught.value)

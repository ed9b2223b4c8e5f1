"""`[source]` refuses what cannot work, and hides its secrets."""

from pathlib import Path
from typing import Any

import pytest

from actors.kafka_config import SourceConfig, start_ms
from schemas.errors import SettingsError


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"brokers": "localhost"}, "host:port"),
        ({"brokers": " , "}, "source.brokers is empty"),
        ({"topics": ()}, "source.topics is empty"),
        ({"topics": ("a b",)}, "no topic's name"),
        ({"topics": ("a", "a")}, "twice"),
        ({"topics": ("a", "a.dlq")}, "its own dead letters"),
        ({"start": "yesterday"}, "source.start is 'yesterday'"),
        ({"start": "2024-01-31"}, "without a time zone"),
        ({"start": -1}, "source.start is -1"),
        ({"security_protocol": "SASL_SSL"}, "sasl_mechanism"),
        ({"sasl_mechanism": "PLAIN"}, "sasl_mechanism"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN"}, "source.username"),
        ({"ssl_certfile": "c.pem"}, "both or none"),
    ],
)
def test_settings_are_refused_with_what_to_do(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        SourceConfig(**({"brokers": "h:1", "topics": ("t",)} | settings))


def test_a_start_is_an_instant_with_a_zone_or_milliseconds() -> None:
    assert start_ms("1970-01-01T00:00:01.5Z") == start_ms(1500) == 1500
    assert start_ms("1970-01-01T01:00:00+01:00") == 0
    assert start_ms("earliest") is None


def test_a_password_is_read_when_connecting_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-256", "username": "u"}
    secret = tmp_path / "password"
    secret.write_bytes(b"hunter2\n")
    by_file = SourceConfig("h:1", ("t",), password_file=str(secret), **login)  # type: ignore[arg-type]
    assert by_file.client()["sasl_plain_password"] == "hunter2"
    assert "hunter2" not in repr(by_file)
    secret.write_bytes(b"hunter2\xff")
    with pytest.raises(SettingsError) as caught:
        by_file.client()
    assert "hunter2" not in str(caught.value)
    by_name = SourceConfig("h:1", ("t",), password_env="SECRET_OF_TEST", **login)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="SECRET_OF_TEST"):
        by_name.client()
    monkeypatch.setenv("SECRET_OF_TEST", "hunter3")
    assert by_name.client()["sasl_plain_password"] == "hunter3"

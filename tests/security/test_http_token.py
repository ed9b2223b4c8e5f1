"""HTTP: loopback or a token; with one, everything but /healthz asks for it."""

import logging
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest

from daemon.cli import fetch_status
from daemon.history import History
from daemon.http import Http
from daemon.page import Page, Releases
from daemon.scatter import Sample
from daemon.settings import HttpConfig, Settings, check, parse
from daemon.totals import Snapshot
from schemas.errors import AfreshError, SettingsError

TOKEN = "tk-http-5d8f0b61c2aa97"
PATHS = [
    "/metrics",
    "/readyz",
    "/status",
    "/",
    "/page.json",
    "/map.json",
    "/docs",
    "/healthz/",
    "/HEALTHZ",
    "//healthz",
]


def served(config: HttpConfig) -> tuple[Http, str]:
    nobody = Sample(1, [], np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    page = Page(History(), Releases(Path("none")), lambda _: nobody)
    http = Http(config, lambda: Snapshot("s"), list, lambda: ["no release"], page)
    return http, http.start()


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(TOKEN + "\n")
    return file


@pytest.fixture(scope="module")
def client(token_file: Path) -> Iterator[httpx.Client]:
    http, address = served(HttpConfig(port=0, token_file=str(token_file)))
    with httpx.Client(base_url=address, timeout=10) as made:
        yield made
    http.stop()


WRONG = {
    "nothing": None,
    "another": f"Bearer x{TOKEN}",
    "a part": f"Bearer {TOKEN[:-1]}",
    "no scheme": TOKEN,
    "another scheme": f"Basic {TOKEN}",
    "empty": "Bearer",
    "beyond ASCII": f"Bearer {TOKEN}\xe9".encode("latin-1"),
}


@pytest.mark.parametrize("sent", WRONG.values(), ids=WRONG)
def test_who_has_no_token_reads_nothing_but_healthz(client: httpx.Client, sent: str | None) -> None:
    headers = {} if sent is None else {"Authorization": sent}
    for path in PATHS:
        answer = client.get(path, headers=headers)
        assert (answer.status_code, path) == (401, path)
        assert answer.headers["www-authenticate"] == 'Bearer realm="afresh"'
        assert answer.text == "a bearer token is needed: see http.token_file\n"
        assert "uvicorn" not in str(answer.headers)
    assert client.post("/status", headers=headers).status_code == 401
    assert client.get("/healthz", headers=headers).json() == {"ok": True, "reasons": []}


def test_two_headers_are_none(client: httpx.Client) -> None:
    both = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")]
    assert client.get("/status", headers=both).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_who_has_it_reads_all(client: httpx.Client, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {TOKEN}"}
    assert "afresh_build_info" in client.get("/metrics", headers=headers).text
    assert client.get("/status", headers=headers).json()["ready"] == ["no release"]
    assert client.get("/readyz", headers=headers).status_code == 503
    assert "<title>afresh</title>" in client.get("/", headers=headers).text
    assert client.get("/page.json", headers=headers).json()["stream"] == "s"
    assert "a map needs" in client.get("/map.json", headers=headers).json()["reason"]
    assert client.get("/nothing", headers=headers).status_code == 404


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "afresh.example.org", ""])  # noqa: S104
def test_an_open_address_without_a_token_is_refused_with_what_to_set(
    host: str, token_file: Path
) -> None:
    with pytest.raises(SettingsError) as caught:
        HttpConfig(host=host)
    assert "http.token_file or http.token_env" in str(caught.value)
    assert "http.insecure = true" in str(caught.value)
    HttpConfig(host=host, insecure=True)
    HttpConfig(host=host, token_file=str(token_file))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert HttpConfig(host=host).token() is None


def test_a_token_is_read_from_file_or_environment_and_must_be_hard_to_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_file: Path
) -> None:
    assert HttpConfig(token_file=str(token_file)).token() == TOKEN
    monkeypatch.setenv("HTTP_TOKEN_OF_TEST", TOKEN)
    assert HttpConfig(token_env="HTTP_TOKEN_OF_TEST").token() == TOKEN
    with pytest.raises(SettingsError, match="keep one of them"):
        HttpConfig(token_env="A", token_file="b")
    bad = tmp_path / "bad"
    for text in ("short-5d8f0b6", "two words 5d8f0b61c2aa97", "", "5d8f0b61c2aa97-é-5d8f"):
        bad.write_text(text)
        with pytest.raises(SettingsError, match=r"http\.token_") as caught:
            HttpConfig(token_file=str(bad)).token()
        assert "5d8f0b6" not in str(caught.value)
    with pytest.raises(SettingsError, match=r"http\.token_file .*none cannot be read"):
        HttpConfig(token_file=str(tmp_path / "none")).token()


def settings(folder: Path, http: str) -> Settings:
    return parse(f"""
name = "s"
state_dir = "{folder}"
stream = {{ entity = "e", time = "t", field = [{{ name = "x", type = "number" }}] }}
source = {{ brokers = "h:1", topics = ["t"] }}
http = {{ {http} }}
""")


def test_a_file_of_settings_without_its_token_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    with pytest.raises(SettingsError, match=r"http\.host is '0\.0\.0\.0'"):
        settings(tmp_path, 'host = "0.0.0.0"')
    with pytest.raises(SettingsError, match=r"http\.token_env: the environment has no NOT_SET"):
        check(settings(tmp_path, 'token_env = "NOT_SET"'))


def test_the_commands_send_it_to_the_daemon_and_to_no_proxy(
    tmp_path: Path,
    token_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    given = settings(tmp_path, f'port = 0, token_file = "{token_file}"')
    http, address = served(given.http)
    given.folder.mkdir()
    (given.folder / "address").write_text(address)
    with closing(socket.create_server(("127.0.0.1", 0))) as proxy:
        proxy.settimeout(0.2)
        port = proxy.getsockname()[1]
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        assert fetch_status(given)["stream"] == "s"
        with pytest.raises(TimeoutError):
            proxy.accept()
    token_file.with_name("other").write_text("x" * 32)
    other = settings(tmp_path, f'port = 0, token_file = "{token_file.with_name("other")}"')
    for wrong in (other, settings(tmp_path, "port = 0")):
        with pytest.raises(AfreshError, match=r"wants another token.*http\.token_file") as caught:
            fetch_status(wrong)
        assert TOKEN not in str(caught.value)
    http.stop()
    assert TOKEN not in caplog.text


def has_ipv6() -> bool:
    with suppress(OSError), closing(socket.create_server(("::1", 0), family=socket.AF_INET6)):
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_an_address_of_ipv6_can_be_read_back(token_file: Path) -> None:
    http, address = served(HttpConfig(host="::1", port=0, token_file=str(token_file)))
    assert address.startswith("http://[::1]:")
    assert httpx.get(f"{address}/healthz").status_code == 200
    http.stop()

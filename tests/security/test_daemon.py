"""A whole daemon on secured servers: it works, its secrets are nowhere, its Ray lets nobody in.

One service for all tests of this file."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from daemon import servers
from daemon.cli import fetch_status
from daemon.reading import Reader, forget
from daemon.settings import load
from schemas.errors import AfreshError
from tests.daemon.test_cli import SETTINGS, Service
from tests.security import test_kafka_rights, test_redis
from tests.security.support import PASSWORD, USER, Broker, Certificates, tls_proxy

pytestmark = pytest.mark.timeout(200)

TOKEN = "tk-http-93ab5512e08d"
REDIS_PASSWORD = test_redis.PASSWORD
GUESSED = "0" * 64
"""Ray's token, if the environment that the daemon is started in could choose it."""
SECURED = {
    "[redis]": """security_protocol = "SASL_SSL"
sasl_mechanism = "SCRAM-SHA-512"
username = "{user}"
password_file = "{folder}/kafka-password"
ssl_cafile = "{ca}"

[redis]
username = "afresh-{name}"
password_env = "REDIS_PASSWORD_OF_TEST"
tls_ca_file = "{ca}\"""",
    "[http]": '[http]\ntoken_file = "{folder}/token"',
    "[service]": '[service]\nray_folder = "{ray}"',
}


@dataclass
class Secured(Service):
    ca: Path = Path()
    ray: Path = Path()
    sasl: str = ""
    texts: dict[str, str] = field(default_factory=dict)

    def write_settings(self) -> None:
        text = SETTINGS
        for section, more in SECURED.items():
            text = text.replace(section, more)
        (self.folder / "kafka-password").write_text(PASSWORD + "\n")
        (self.folder / "token").write_text(TOKEN + "\n")
        given = {"name": self.name, "kafka": self.sasl, "redis": self.redis, "user": USER}
        text = text.replace('state_dir = "{folder}"', 'state_dir = "{folder}/state"')
        self.config.write_text(text.format(folder=self.folder, ca=self.ca, ray=self.ray, **given))
        servers.create_topics(self.kafka, {self.name: 1})

    def ready(self) -> bool:
        """Everything was read; the first release is not waited for, since its export takes long."""
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "daemon.log").read_text()[-3000:]
        with suppress(OSError, httpx.TransportError):
            shards = self.answer("status").json()["shards"].values()
            return sum(s["accepted"] + sum(s["dead_letters"].values()) for s in shards) == 402
        return False

    @property
    def root(self) -> Path:
        return self.folder / "state" / self.name

    def answer(self, path: str, token: str = TOKEN) -> httpx.Response:
        address = (self.root / "address").read_text()
        return httpx.get(
            f"{address}/{path}", headers={"Authorization": f"Bearer {token}"}, timeout=5
        )

    def get(self, path: str) -> tuple[int, list[str]]:
        answer = self.answer(path)
        return answer.status_code, answer.json()["reasons"]

    def processes(self) -> list[psutil.Process]:
        assert self.process is not None
        mine = psutil.Process(self.process.pid)
        return [mine, *mine.children(recursive=True)]


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory,
    secured: Broker,
    certificates: Certificates,
    own_redis: str,
) -> Iterator[Secured]:
    name, folder = f"test-{os.urandom(6).hex()}", tmp_path_factory.mktemp("daemon")
    ray = Path(tempfile.mkdtemp(prefix="afr-"))  # short: Ray's sockets lie in it
    test_kafka_rights.grant(secured, test_kafka_rights.rights(name))
    words = test_redis.line_of("afresh", name)
    words[2] = f"afresh-{name}"
    os.environ |= {"REDIS_PASSWORD_OF_TEST": REDIS_PASSWORD, "RAY_AUTH_TOKEN": GUESSED}
    with tls_proxy(own_redis.removeprefix("redis://"), certificates.server) as port:
        with redis.Redis.from_url(own_redis) as admin:
            admin.execute_command(*words)
            url = f"rediss://127.0.0.1:{port}/0"
            made = Secured(
                name, folder, secured.plain, url, ca=certificates.ca, ray=ray, sasl=secured.sasl
            )
            made.write_settings()
            made.produce(400, b"{", b'{"who": "e1"}')
            try:
                made.start()
                yield made
            finally:
                if made.process is not None and made.process.poll() is None:
                    made.process.terminate()
                    with suppress(subprocess.TimeoutExpired):
                        made.process.wait(40)
                    made.process.kill()
                admin.acl_deluser(f"afresh-{name}")
                del os.environ["REDIS_PASSWORD_OF_TEST"]
                os.environ.pop("RAY_AUTH_TOKEN", None)
                shutil.rmtree(ray, ignore_errors=True)


# -- secrets --------------------------------------------------------------------------------------

PATHS = ("", "metrics", "status", "healthz", "readyz", "page.json", "map.json")


def said(service: Secured) -> dict[str, str]:
    """Everything that the service tells anybody, by where."""
    told = {path: service.answer(path).text for path in PATHS}
    told["arguments"] = "\n".join(" ".join(p.cmdline()) for p in service.processes())
    for file in [service.folder / "daemon.log", *service.ray.rglob("*"), *service.root.rglob("*")]:
        if file.is_file() and file.name != "ray-token":
            told[str(file)] = file.read_bytes().decode(errors="replace")
    done = service.run("status")
    assert done.returncode == 0
    told["status of a terminal"] = done.stdout + done.stderr
    told["refused"] = "".join(refused(service))
    return told


def refused(service: Secured) -> Iterator[str]:
    """What is said to whoever has other secrets than are needed."""
    settings = load(service.config)
    cases: dict[str, tuple[Callable[[], object], str]] = {
        "token": (lambda: fetch_status(settings), r"http\.token_file"),
        "kafka-password": (lambda: forget(settings, "e1", 2.0), r"source\.password_file"),
    }
    for file, (act, says) in cases.items():
        right = (service.folder / file).read_text()
        (service.folder / file).write_text(f"not-{right}")
        with pytest.raises(AfreshError, match=says) as caught:
            act()
        (service.folder / file).write_text(right)
        yield str(caught.value)
    os.environ["REDIS_PASSWORD_OF_TEST"] = f"not-{REDIS_PASSWORD}"
    with pytest.raises(AfreshError, match=r"redis\.username") as caught:
        Reader(settings).lookup(["e1"])
    os.environ["REDIS_PASSWORD_OF_TEST"] = REDIS_PASSWORD
    yield str(caught.value)


def test_no_secret_is_told_anywhere(service: Secured) -> None:
    ray_token = (service.root / "ray-token").read_text()
    secrets = {"kafka": PASSWORD, "redis": REDIS_PASSWORD, "http": TOKEN, "ray": ray_token}
    told = said(service)
    assert "afresh_build_info" in told["metrics"] and service.name in told["status"]
    assert "epoch=1" in told[str(service.folder / "daemon.log")]
    assert any("session_" in where for where in told), "Ray's logs are among them"
    found = [
        (name, where) for where, text in told.items() for name, s in secrets.items() if s in text
    ]
    assert not found


def test_the_daemons_page_asks_for_the_token(service: Secured) -> None:
    for path in set(PATHS) - {"healthz"}:
        assert service.answer(path, "x" * 20).status_code == 401
        assert service.answer(path).status_code in (200, 503)
    assert service.answer("healthz", "none").status_code == 200


# -- Ray ------------------------------------------------------------------------------------------

ASK = """
import sys
from ray._raylet import GcsClient
try:
    print("IN", GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=5)[:1])
except Exception as error:
    print("OUT", type(error).__name__, str(error)[:300])
"""


def ask(service: Secured, **environment: str) -> str:
    """What Ray's control service answers to a client with this environment."""
    (gcs,) = [p for p in service.processes() if p.name() == "gcs_server"]
    (port,) = ports(gcs)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, "-c", ASK, f"127.0.0.1:{port[1]}"]
    done = subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


def ports(process: psutil.Process) -> list[tuple[str, int]]:
    return [
        tuple(c.laddr) for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN
    ]


def test_ray_lets_in_who_has_its_token_and_nobody_else(service: Secured) -> None:
    token = str(service.root / "ray-token")
    assert ask(service, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=token).startswith("IN ")
    for wrong in (
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": GUESSED},
    ):
        answer = ask(service, **wrong)
        assert "IN " not in answer and "uthenticat" in answer, answer


def test_every_port_is_on_loopback_and_is_documented(service: Secured) -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    table = page.split("## Ports\n")[1].split("\n##")[0]
    for process in service.processes():
        title = process.cmdline()[0]
        scripts = [Path(word).name for word in process.cmdline() if word.endswith(".py")]
        name = title if title.startswith("ray::") else (scripts or [process.name()])[0]
        name = "daemon" if process.pid == service.processes()[0].pid else name
        for host, port in ports(process):
            assert host in ("127.0.0.1", "::1", "::ffff:127.0.0.1"), (name, host)
            assert f"`{name}`" in table
            if name == "ray::RuntimeEnvAgent":
                assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 401


def test_files_are_our_users_alone(service: Secured) -> None:
    assert stat.S_IMODE((service.root / "ray-token").stat().st_mode) == 0o600
    (inner,) = service.ray.iterdir()  # Ray opens what is in it to everybody
    for folder in (service.root, inner):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


OPEN = """
import os, sys
from pathlib import Path
if sys.argv[2] == "early":
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray._raylet import get_authentication_mode
    get_authentication_mode()
from actors import spawn
spawn._refuse_open(Path(sys.argv[1]))
print("not refused")
"""


@pytest.mark.parametrize(
    ("mode", "when", "says"),
    [
        (0o640, "", "lets others read"),
        (0o600, "early", "does not ask for"),
    ],
)
def test_a_ray_that_is_open_is_refused(tmp_path: Path, mode: int, when: str, says: str) -> None:
    token = tmp_path / "ray-token"
    token.write_text("0" * 64)
    token.chmod(mode)
    command = [sys.executable, "-c", OPEN, str(token), when]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert says in done.stdout + done.stderr

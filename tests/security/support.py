"""Certificates, a broker's security settings, and a proxy that speaks TLS in front of a server that has none."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import kafka as kafka_python
from kafka.admin import UserScramCredentialUpsertion

from daemon.children import HOST

PASSWORD = "pw-kafka-3f9c1d77e2"
USER = "afresh"


@dataclass(frozen=True)
class Pem:
    """One certificate and its key."""

    cert: Path
    key: Path


@dataclass(frozen=True)
class Certificates:
    """An authority, what it signed, and another authority that signed nothing of ours."""

    ca: Path
    other_ca: Path
    server: Pem  # of 127.0.0.1, not of localhost
    elsewhere: Pem  # of another name
    client: Pem
    stranger: Pem  # a client's, of the other authority


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)


def authority(folder: Path, name: str) -> Pem:
    made = Pem(folder / f"{name}.pem", folder / f"{name}-key.pem")
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    openssl(
        "req",
        "-x509",
        *new,
        "-subj",
        f"/CN={name}",
        "-keyout",
        str(made.key),
        "-out",
        str(made.cert),
    )
    return made


def signed(folder: Path, name: str, by: Pem, names: str) -> Pem:
    """A certificate for `names`, such as "IP:127.0.0.1,DNS:localhost"; the key is PKCS 8 for Java."""
    made, request = Pem(folder / f"{name}.pem", folder / f"{name}-key.pem"), folder / f"{name}.csr"
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", *new, "-subj", f"/CN={name}", "-keyout", str(made.key), "-out", str(request))
    extensions = folder / f"{name}.ext"
    extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n")
    openssl(
        "x509", "-req", "-in", str(request), "-CA", str(by.cert), "-CAkey", str(by.key), "-CAcreateserial",
        "-days", "2", "-extfile", str(extensions), "-out", str(made.cert),
    )  # fmt: skip
    return made


@dataclass(frozen=True)
class Broker:
    """Addresses of one broker's listeners. On `plain` everybody may do everything; `sasl` knows USER."""

    plain: str
    tls: str
    mutual: str  # TLS that asks for a client's certificate
    sasl: str


def broker_settings(folder: Path, made: Certificates) -> dict[str, str]:
    store = folder / "server-store.pem"
    store.write_text(made.server.key.read_text() + made.server.cert.read_text())
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    return {
        "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,MUTUAL:SSL,SASL:SASL_SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(store),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(made.ca),
        "listener.name.mutual.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl.scram-sha-512.sasl.jaas.config": scram,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS;User:CN=client;User:root",
    }


def add_user(address: str, name: str, password: str) -> None:
    with closing(kafka_python.KafkaAdminClient(bootstrap_servers=address)) as admin:
        added = UserScramCredentialUpsertion(name, "SCRAM-SHA-512", password)
        assert admin.alter_user_scram_credentials([added]) == {name: None}


# -- TLS in front of a server that has none -------------------------------------------------------


class TlsProxy:
    """Ends TLS and passes the bytes on to a server on this machine."""

    def __init__(self, target: str, context: ssl.SSLContext) -> None:
        host, port = target.rsplit(":", 1)
        self._target, self._context = (host, int(port)), context
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                raw, _ = self._listener.accept()
                self._start(self._serve, raw)

    def _serve(self, raw: socket.socket) -> None:
        inside = self._context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
        try:
            inside.do_handshake()
        except (
            OSError
        ):  # refused by one side; what the other has sent is read, so that it reads why
            with closing(socket.socket(fileno=inside.detach())) as refused, suppress(OSError):
                refused.shutdown(socket.SHUT_WR)
                while refused.recv(65_536):
                    pass
            return
        outside = socket.create_connection(self._target)
        self._open += [inside, outside]
        self._start(self._pump, outside, inside)
        self._pump(inside, outside)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for end in self._open:
            end.close()


@contextmanager
def tls_proxy(target: str, pem: Pem, client_ca: Path | None = None) -> Iterator[int]:
    """Its port. With `client_ca`, a client must show a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem.cert, pem.key)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    with closing(TlsProxy(target, context)) as proxy:
        yield proxy.port


def documented(language: str, having: str) -> list[str]:
    """Lines of docs/security.md's code blocks of a language, of those blocks that hold `having`."""
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    blocks = [part.split("```")[0] for part in text.split(f"```{language}\n")[1:]]
    lines = [line for block in blocks if having in block for line in block.strip().splitlines()]
    assert lines, f"docs/security.md has no {language} block with {having!r}"
    return lines

"""A server as a child process: it ends with us, even when we are ended by kill -9.

A handle can stop, kill, pause, and start its server again on the same port and folder. Nothing
is ever ended that was not started by the handle."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from schemas.errors import AfreshError

HOST = "127.0.0.1"
# Below what systems hand to outgoing connections, so that none takes a stopped server's port.
PORTS = range(20_000, 32_000)

# Runs before the server, in its process. "signal": Linux kills it with the thread that started
# it. "pipe": a child waits for the end of stdin, which comes when the parent has gone.
GUARD = """
import os, signal, sys
how, parent, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
if how == "signal":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that asked for this server has gone")
elif how == "pipe":
    server = os.getpid()
    if os.fork() == 0:
        os.read(0, 1)
        if os.getppid() == server:
            os.kill(server, signal.SIGKILL)
        os._exit(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.execv(command[0], command)
"""
Guard = Literal["signal", "pipe", "none"]
GUARDED: Guard = "signal" if sys.platform == "linux" else "pipe"


class ServerError(AfreshError):
    """A local server did not start or did not answer."""


@dataclass
class Server:
    """One server. Start it from a thread that lives as long as the server shall (see GUARD)."""

    name: str
    address: str
    folder: Path
    command: list[str]
    answers: Callable[[], bool]
    guard: Guard = GUARDED
    deadline_s: float = 60.0
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerError(f"{self.name} is not running; start() it first.")
        return self._process.pid

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when the server answers. Also starts a stopped or killed one again."""
        if self.alive():
            raise ServerError(f"{self.name} is running already on {self.address}.")
        self._forget()
        guarded = [sys.executable, "-I", "-S", "-c", GUARD, self.guard, str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                guarded + self.command,
                stdin=subprocess.PIPE if self.guard == "pipe" else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for us; we stop it when we are ready
            )
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + self.deadline_s
        while not self.answers() or not self.alive():  # a stranger may answer in its place
            if not self.alive():
                self._fail("has ended at once")
            if time.monotonic() > end:
                self.kill()
                self._fail(f"did not answer on {self.address} within {self.deadline_s:.0f} s")
            time.sleep(0.02)

    def _fail(self, what: str) -> None:
        lines = self.log.read_text(errors="replace").splitlines()[-20:]
        tail = "\n".join(lines) or "(empty)"
        raise ServerError(
            f"{self.name} {what}. The end of its log, {self.log}:\n{tail}\n"
            f"Where {self.folder} is damaged or of another version, remove it. A server of your "
            "own can be used instead: set AFRESH_KAFKA or AFRESH_REDIS."
        )

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """kill -9. What the server had not given to the operating system is lost."""
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
        self._forget()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ask it to end; kill it when it has not within `timeout_s`."""
        if self.alive() and self._process is not None:
            os.kill(self.pid, signal.SIGTERM)
            self.resume()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        self._forget()

    def _forget(self) -> None:
        if self._process is not None:
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._process = None


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Started now, stopped at the end; one without a guard stays, unless an error ends it."""
    kept = server.guard == "none"
    try:
        server.start()
        yield server
    except GeneratorExit:  # let go of by whoever keeps it: not an error
        raise
    except BaseException:
        kept = False
        raise
    finally:
        if not kept:
            server.stop()


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise ServerError(f"Fewer than {count} free ports from {PORTS.start} to {PORTS.stop - 1}.")

"""Ray: the only file that imports it. Plain classes become actors here, and calls become polls with deadlines."""

import hashlib
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

# Ray reads these when it is imported
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else it takes 127.0.0.1 for "any address"

import psutil
import ray
import ray.exceptions

from actors.ports import LearnerPort
from actors.private import private_folder
from actors.processes import (
    LabelProcess,
    LearnProcess,
    PublishProcess,
    ShardProcess,
    Spec,
    Status,
)
from schemas.errors import AfreshError
from schemas.records import Told, Windows

SEND_BYTES = 1 << 20
SEND_AFTER_S = 0.5
IN_FLIGHT = 4
_COLOUR = re.compile("\x1b\\[[0-9;]*m")


def start(folder: Path, ray_folder: str, object_store_mb: int) -> None:
    """A Ray of our own on this machine: token authentication, dashboard off, loopback.

    `folder` is the service's, whose lease we hold: what an earlier Ray of ours left behind is removed."""
    short = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    home = (
        Path(ray_folder) / short[:6]
        if ray_folder
        else Path(tempfile.gettempdir()) / f"afresh-{os.getuid()}-{short}"
    )
    private_folder(home, "service.ray_folder")
    inner = home / "r"  # Ray opens its folder to everybody
    shutil.rmtree(inner, ignore_errors=True)
    token = folder / "ray-token"
    token.unlink(missing_ok=True)
    fd = os.open(token, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(fd, "w") as f:
        f.write(secrets.token_hex(32))
    os.environ.pop("RAY_AUTH_TOKEN", None)  # it would go before the file
    os.environ |= {
        "RAY_AUTH_TOKEN_PATH": str(token.resolve()),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # one heap for all threads: with one each, releases and snapshots leave holes that grow for months
        "MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "2"),
        "RAY_worker_niceness": "0",  # 15 unless told: shards would wait for whoever else runs here
        "RAY_task_events_report_interval_ms": "0",  # else the GCS keeps what every call did
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=object_store_mb << 20,
        configure_logging=False,
        log_to_driver=True,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(inner),
    )
    _refuse_open(token)


def _refuse_open(token: Path) -> None:
    """Raises AfreshError, with Ray stopped, unless it asks for our token and nobody else can read that."""
    from ray._raylet import (  # type: ignore[attr-defined]  # compiled
        AuthenticationMode,
        get_authentication_mode,
    )

    asks = get_authentication_mode() == AuthenticationMode.TOKEN
    if asks and token.stat().st_mode & 0o177 == 0:
        return
    ray.shutdown()
    raise AfreshError(
        f"Ray {'does not ask for' if not asks else 'lets others read'} its token, {token}: whoever reaches its "
        "ports could run code. RAY_AUTH_MODE must be `token`, and the state folder on a filesystem with modes."
    )


def stop() -> None:
    ray.shutdown()


def broken() -> str:
    """Which of Ray's own processes have died; empty while all live.

    Without them no process can be started again, and Ray itself notices after a minute at the earliest."""
    node: Any = ray._private.worker._global_node
    dead = {kind for kind, _ in node.dead_processes()} if node is not None else set()
    return ", ".join(sorted(dead & {"raylet", "gcs_server"}))


def abandon(code: int) -> NoReturn:
    """Ends this process and all below it at once: a Ray without its heart does not shut down."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Handle:
    """One actor: its status is asked for without ever waiting for it."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self._asked: Any = None

    def poll(self) -> Status | str | None:
        """The answer to the last question, None while there is none, a text once the process is dead."""
        try:
            if self._asked is None:
                self._asked = self.actor.status.remote()
            ready, _ = ray.wait([self._asked], timeout=0)
            if not ready:
                return None
            asked, self._asked = self._asked, None
            status: Status = ray.get(asked)
        except ray.exceptions.RayError as error:
            lines = _COLOUR.sub("", str(error)).strip().splitlines()
            return " … ".join(dict.fromkeys((lines[0], lines[-1])))  # what happened, and why
        return status

    def tell(self, method: str, *args: Any) -> None:
        """Calls without waiting; a dead process is found by `poll`."""
        try:
            getattr(self.actor, method).remote(*args)
        except ray.exceptions.RayError:
            return

    def kill(self) -> None:
        ray.kill(self.actor, no_restart=True)


def _actor(cls: type, args: tuple[Any, ...], **options: Any) -> Handle:
    remote: Any = ray.remote(cls).options(
        num_cpus=0,
        max_restarts=0,
        max_task_retries=0,
        max_pending_calls=64,
        enable_task_events=False,
        **options,
    )
    return Handle(remote.remote(*args))


def spawn_shard(
    spec: Spec, groups: dict[int, int], learner: Handle | None, several: bool
) -> Handle:
    options: dict[str, Any] = {"scheduling_strategy": "SPREAD"} if several else {}
    port = RemoteLearner(learner.actor if learner else None) if spec.learner.enabled else None
    return _actor(ShardProcess, (spec, groups, port), **options)


def spawn_learner(spec: Spec, epoch: int, gpus: int) -> Handle:
    return _actor(LearnProcess, (spec, epoch), num_gpus=gpus)


def spawn_publisher(spec: Spec, epoch: int) -> Handle:
    return _actor(PublishProcess, (spec, epoch))


def spawn_labels(spec: Spec, epoch: int) -> Handle:
    return _actor(LabelProcess, (spec, epoch))


def gpus() -> int:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("GPU", 0) > 0)


class RemoteLearner(LearnerPort):
    """Sends windows to the learner's process in calls of about a megabyte; never waits for one."""

    def __init__(self, actor: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._actor, self._clock = actor, clock
        self._parts: list[tuple[int, list[int], Windows]] = []
        self._bytes, self._since = 0, clock()
        self._calls: list[Any] = []
        self._full_until = 0.0
        self._forgetting: tuple[int, Any] | None = None  # how many, the call
        self._describing: Any = None
        self.processes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteLearner, (self._actor,)

    def connect(self, learner: Any) -> None:
        self._actor, self._calls, self._full_until = learner, [], 0.0
        self._forgetting = self._describing = None
        self.processes += 1

    def offer(self, group: int, positions: list[int], windows: Windows) -> bool:
        now = self._clock()
        self._collect(now)
        if self._actor is None or len(self._calls) >= IN_FLIGHT or now < self._full_until:
            return False
        if not self._parts:
            self._since = now
        self._parts.append((group, positions, windows))
        self._bytes += windows.nbytes
        return self._send(now)

    def poll(self) -> None:
        if self._parts and self._actor is not None:
            now = self._clock()
            self._collect(now)
            if len(self._calls) < IN_FLIGHT and now >= self._full_until:
                self._send(now)

    def _send(self, now: float, all_of_it: bool = False) -> bool:
        if not all_of_it and self._bytes < SEND_BYTES and now - self._since < SEND_AFTER_S:
            return True
        parts, self._parts, self._bytes = self._parts, [], 0
        try:
            self._calls.append(self._actor.offer.remote(parts))
        except ray.exceptions.RayError:
            self._full_until = now + 1.0
            return False
        return True

    def describe(self, told: Told) -> bool:
        now = self._clock()
        if self._actor is None or now < self._full_until:
            return False
        try:
            # one read of what `connect`, in another thread, may set to None
            call = self._describing
            if call is None:
                call = self._actor.describe.remote(told)
            self._describing = call
            if not ray.wait([call], timeout=0)[0]:
                return False
            self._describing = None
            if ray.get(call):
                return True
        except ray.exceptions.RayError:
            self._describing = None
        self._full_until = now + 0.5  # dead, full, or it still loads
        return False

    def forget(self, entities: list[int]) -> int:
        now = self._clock()
        if self._actor is None or now < self._full_until:
            return 0
        try:
            forgetting = self._forgetting
            if forgetting is None:
                if self._parts:  # calls of one caller arrive in order
                    self._send(now, all_of_it=True)
                forgetting = len(entities), self._actor.forget.remote(entities)
            self._forgetting = forgetting
            count, call = forgetting
            if not ray.wait([call], timeout=0)[0]:
                return 0
            self._forgetting = None
            if ray.get(call):
                return count
        except ray.exceptions.RayError:
            self._forgetting = None
        self._full_until = now + 0.5  # dead, or it still loads
        return 0

    def _collect(self, now: float) -> None:
        done, self._calls = (
            ray.wait(self._calls, num_returns=len(self._calls), timeout=0)
            if self._calls
            else ([], [])
        )
        for call in done:
            try:
                taken = ray.get(call)
            except ray.exceptions.RayError:  # dead: the supervisor connects another
                taken = False
            if not taken:
                self._full_until = now + 0.5

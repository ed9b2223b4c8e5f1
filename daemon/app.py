"""The wiring: take the lease, start the processes, watch over them, drain and stop."""

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog

from actors import group_meta, requests, spawn
from actors import lease as leases
from actors.cut import set_learner_aside, wide
from actors.folders import Folder, epoch_of, folders, write_file
from actors.processes import Spec, Status
from actors.served import current_release, read_manifest, usable_release
from actors.source import partitions
from actors.usage import cpu_s, resident_bytes
from daemon.history import History
from daemon.http import Http
from daemon.machine import disk, memory_limit
from daemon.page import Page
from daemon.reactions import Reactions
from daemon.scalars import Scalars
from daemon.settings import Settings, check
from daemon.supervisor import (
    Alive,
    Dead,
    Failed,
    Nothing,
    Process,
    Restart,
    Seen,
    Silent,
    Stop,
    decide,
    slowest_others,
)
from daemon.totals import Snapshot, Totals, no_release
from schemas.errors import (
    AfreshError,
    LeaseHeld,
    LeaseLost,
    SettingsError,
    SnapshotError,
    SourceError,
)
from schemas.published import Manifest
from schemas.stats import LearnerStats

log = structlog.get_logger()
TURN_S = 0.2
SLOW = 5
"""So many times service.hang_s may a process stand still that restores, exports or learns."""


@dataclass
class Child:
    """One process: what the supervisor remembers, how to reach it, how to start it again."""

    process: Process
    start: Callable[[int], spawn.Handle]  # restarts so far -> handle
    handle: spawn.Handle
    total_restarts: int = 0
    anew: bool = False
    finished: bool = False
    status: Status | None = None


@dataclass
class App:
    settings: Settings
    address: str = ""
    _children: dict[str, Child] = field(default_factory=dict)
    _totals: Totals = field(default_factory=Totals)
    _lease: leases.Lease | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)  # the lease is held until then
    _reactions: Reactions = field(init=False)
    _exit: AfreshError | None = None
    _ray_died: bool = False
    _groups: int = 0
    _history: History = field(default_factory=History)
    _scalars: Scalars = field(default_factory=Scalars)
    _memory_limit: int = field(default_factory=memory_limit)

    def __post_init__(self) -> None:
        self._reactions = Reactions(self.settings.reactions)

    # -- run --------------------------------------------------------------------------------------

    def run(self, standby: bool = False, started: Callable[[str], object] = lambda _: None) -> int:
        """Runs until told to stop. Returns the exit code. Raises AfreshError where it cannot start."""
        self._on_signals()
        settings = self.settings
        check(settings)
        self._lease = leases.take(
            settings.folder,
            lease_s=settings.service.lease_s,
            clock=time.monotonic,
            wait=self._wait,
            standby=standby,
        )
        log.info("lease_taken", epoch=self._lease.epoch, folder=str(settings.folder))
        renewing = threading.Thread(target=self._renew, name="lease", daemon=True)
        renewing.start()
        http: Http | None = None
        try:
            self._check()
            http = self._listen(patient=standby)
            write_file(settings.folder / "address", self.address.encode())
            spawn.start(
                settings.folder, settings.service.ray_folder, settings.service.object_store_mb
            )
            self._on_signals()  # Ray has set its own
            self._start()
            started(self.address)
            while not self._stop.wait(TURN_S) and not self._broken():
                self._turn()
            if not self._ray_died:
                self._drain()
        finally:
            self._stop.set()
            if http is not None:
                http.stop()
            if not self._ray_died:
                spawn.stop()
            self._ended.set()
            renewing.join()
            if not isinstance(self._exit, LeaseLost):
                self._lease.release()
        if self._exit is not None:
            log.error("stopped", reason=str(self._exit))
            if self._ray_died:
                spawn.abandon(self._exit.exit_code)
            return self._exit.exit_code
        return 0

    def _broken(self) -> bool:
        """Whether Ray itself has died: then this daemon ends, and the supervisor above or a standby goes on."""
        dead = spawn.broken()
        if dead and not self._ray_died:
            self._ray_died = True
            self._exit = AfreshError(
                f"Ray's {dead} has died (killed, or out of memory?): no process can be started any more. "
                "Start again: what was done since the last snapshots is read again from Kafka."
            )
        return self._ray_died

    def _listen(self, *, patient: bool) -> Http:
        """`patient`: whom we took over from may hold the port for a moment longer."""
        until = time.monotonic() + (self.settings.service.grace_s if patient else 0.0)
        while True:
            page = Page.of(self.settings, self._history)
            http = Http(self.settings.http, self.snapshot, self.health, self.ready, page)
            try:
                self.address = http.start()
            except SettingsError:
                if time.monotonic() > until:
                    raise
                self._wait(0.5)
            else:
                return http

    def stop(self) -> None:
        self._stop.set()

    def _on_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise LeaseHeld("stopped while waiting for the lease.")

    def _renew(self) -> None:
        assert self._lease is not None
        while not self._ended.wait(self.settings.service.lease_s / 4):
            try:
                self._lease.renew()
            except LeaseLost as error:
                self._exit = error
                self._stop.set()
                return
            except OSError as error:
                log.error("lease_not_renewed", reason=str(error), folder=str(self.settings.folder))

    def _check(self) -> None:
        """What must hold before anything is started."""
        settings = self.settings
        self._groups = partitions(settings.source)
        if settings.stream.nodes and self._groups > 1:
            partitions(settings.source.with_mirror(settings.name))
        known = settings.folder / "groups"
        before = int(known.read_text()) if known.exists() else self._groups
        if before != self._groups:
            raise SourceError(
                f"the topics have {self._groups} partitions, the state was built with {before}: keys have "
                "moved. Start a stream of another name from source.start, or restore the partition count."
            )
        write_file(known, str(self._groups).encode())
        current = usable_release(settings.releases)
        if current:
            refuse_changed(settings, read_manifest(settings.releases / str(current)))
        elif not settings.learner.enabled:
            raise SettingsError(
                "learner.enabled is false and there is no release to serve in "
                f"{settings.releases}. Set learner.enabled = true until the first release, or copy one there."
            )
        refuse_other_state(settings, self._groups)
        if aside := set_learner_aside(settings.folder, settings.stream):
            log.warning("learner_begins_anew", why="it was of other fields", aside=str(aside))

    # -- processes --------------------------------------------------------------------------------

    @property
    def spec(self) -> Spec:
        s = self.settings
        return Spec(
            s.name, str(s.folder.resolve()), self._groups, s.stream, s.source, s.decode, s.state, s.shard,
            s.encoder, s.learner, s.release, s.redis, s.labels,
        )  # fmt: skip

    def _start(self) -> None:
        assert self._lease is not None
        epoch, spec = self._lease.epoch, self.spec
        if spec.learner.enabled:
            gpus = spawn.gpus()
            self._add(
                "learner",
                lambda restarts: spawn.spawn_learner(spec, epoch_of(epoch, restarts), gpus),
            )
        # without a learner too: should Redis lose its data, the release must be told again
        self._add(
            "publisher", lambda restarts: spawn.spawn_publisher(spec, epoch_of(epoch, restarts))
        )
        if spec.labels.topic:
            self._add(
                "labels", lambda restarts: spawn.spawn_labels(spec, epoch_of(epoch, restarts))
            )
        shards = min(spec.shard.shards, self._groups)
        for i in range(shards):
            mine = range(i, self._groups, shards)

            def shard(restarts: int, mine: range = mine) -> spawn.Handle:
                learner = self._children.get("learner")
                groups = {group: epoch_of(epoch, restarts) for group in mine}
                return spawn.spawn_shard(
                    spec, groups, learner.handle if learner else None, shards > 1
                )

            self._add(f"shard-{i}", shard)

    def _add(self, name: str, start: Callable[[int], spawn.Handle]) -> None:
        now = time.monotonic()
        self._children[name] = Child(Process(name, now, progressed_at=now), start, start(0))

    def _turn(self) -> None:
        now = time.monotonic()
        for name, child in self._children.items():
            seen = None if child.process.restart_at is not None else self._look(name, child)
            before = child.process
            patience_s, steady_s = self._patience_s(name, child), self.settings.service.steady_s
            child.process, decision = decide(before, seen, now, patience_s, steady_s)
            if child.process.restart_at is not None and before.restart_at is None:
                log.error(
                    "process_down",
                    process=name,
                    seen=str(seen),
                    restart_in_s=child.process.restart_at - now,
                )
                child.handle.kill()
                child.status = None
            match decision:
                case Restart():
                    child.total_restarts += 1
                    child.anew = True
                    child.handle = child.start(child.total_restarts)
                    log.info("process_restarted", process=name, restarts=child.total_restarts)
                    if name == "learner":
                        for other in self._shards():
                            other.handle.tell("connect", child.handle.actor)
                case Stop(reason, code):
                    self._exit = AfreshError(f"{name}: {reason}")
                    self._exit.exit_code = code
                    self._stop.set()
                case Nothing():
                    pass
        self._align()
        known = self.snapshot()
        if self._history.due(now):
            self._history.add(now, known)
            self._scalars.add(now, known)
        self._react(now, known)
        self._ask()
        groups = known.groups
        if "publisher" in self._children and len(groups) == self._groups:
            tags = [g.oldest_release for g in groups if g.oldest_release]
            # what a process that has died had filled, its successor has still to look at
            live = all(c.status is not None and c.status.stats for c in self._shards())
            filled = min(g.filled for g in groups) if live and groups else 0
            handle = self._children["publisher"].handle
            handle.tell("groups", min(tags, default=0), filled)

    def _react(self, now: float, known: Snapshot) -> None:
        """Tells the learner what follows from what was seen."""
        if "learner" not in self._children:
            return
        decision = self._reactions.turn(now, known)
        self._children["learner"].handle.tell("order", decision.orders)
        asked = {"renew_reference": requests.RENEWAL, "adapt_normalisation": requests.ADAPTATION}
        for reaction in decision.began:
            if reaction in asked:
                try:
                    requests.ask_learner(self.settings.folder / "learner", asked[reaction])
                except OSError as error:  # the disk is full: the next alarm asks again
                    log.error("reaction_failed", reaction=reaction, reason=str(error))

    def _ask(self) -> None:
        """The learner speaks of entities by their hashes: shards know the names."""
        learner = self._totals.get("learner")
        for child in self._shards() if learner is not None else ():
            child.handle.tell("ask", learner.changes.who)

    def _align(self) -> None:
        """Tells each shard how far the others are; one that is down holds nobody back."""
        settings = self.settings
        if not settings.source.max_skew_us(settings.stream.nodes):
            return
        up = {
            name: child
            for name, child in self._children.items()
            if name.startswith("shard-") and child.status is not None and child.status.stats
        }
        floors = {name: child.status.stats.floor_us for name, child in up.items() if child.status}
        for name, floor_us in slowest_others(floors).items():
            up[name].handle.tell("others", floor_us)

    def _patience_s(self, name: str, child: Child) -> float:
        """How long it may stand still: a restore or an export takes its time, a stream does not."""
        streams = name.startswith("shard-") and child.status is not None and child.status.stats
        return self.settings.service.hang_s * (1 if streams else SLOW)

    def _look(self, name: str, child: Child) -> Seen:
        answer = child.handle.poll()
        if answer is None:
            return Silent()
        if isinstance(answer, str):
            return Dead(answer)
        child.status, child.finished = answer, answer.finished
        if answer.stats is not None:
            self._totals.update(name, answer.stats, child.anew)
            child.anew = False
        if answer.error is not None:
            # what serves goes on without a learner or a publisher, but not without the lease
            fatal = name.startswith("shard-") or answer.exit_code == LeaseLost.exit_code
            return Failed(answer.error, answer.exit_code if fatal else None)
        return Alive(answer.progress)

    def _shards(self) -> list[Child]:
        return [child for name, child in self._children.items() if name.startswith("shard-")]

    def _drain(self) -> None:
        """Shards and learner write their last snapshots, within the grace period.

        The publisher has nothing to save, and may be in the middle of an export: it is not waited for."""
        until = time.monotonic() + self.settings.service.grace_s
        children = dict(self._children)
        for child in children.values():
            child.handle.tell("stop")
        children.pop("publisher", None)
        while children and time.monotonic() < until:
            for name, child in list(children.items()):
                seen = self._look(name, child)
                if child.finished or isinstance(seen, Dead | Failed):
                    del children[name]
            time.sleep(0.05)
        if children and self._exit is None:
            names = ", ".join(children)
            self._exit = AfreshError(
                f"{names} did not end within service.grace_s = {self.settings.service.grace_s}; what they had "
                "since their last snapshot is read again from Kafka at the next start."
            )

    # -- what others ask --------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        restarts: dict[str, int] = {}
        for name, child in list(self._children.items()):
            kind = name.partition("-")[0]
            restarts[kind] = restarts.get(kind, 0) + child.total_restarts
        names = [name for name in list(self._children) if name.startswith("shard-")]
        shards = {name: stats for name in names if (stats := self._totals.get(name)) is not None}
        learner: LearnerStats | None = self._totals.get("learner")
        if learner is not None:
            known = {e: name for stats in shards.values() for e, name in stats.named.items()}
            learner = replace(learner, changes=learner.changes.named(known))
        return Snapshot(
            self.settings.name,
            shards,
            learner,
            self._totals.get("publisher"),
            restarts,
            self._lease.epoch if self._lease else 0,
            resident_bytes(),
            cpu_s(),
            self._memory_limit,
            *disk(self.settings.folder),
            self._scalars.alarms(),
            labels=self._totals.get("labels"),
            reactions=dict(self._reactions.counts),
            learning_paused=self._reactions.paused,
        )

    def health(self) -> list[str]:
        """Processes that do not move on. Empty: well."""
        now = time.monotonic()
        wrong = []
        for name, child in list(self._children.items()):
            p = child.process
            if p.restart_at is not None:
                wrong.append(f"{name} is down and will be started again")
            elif now - max(p.progressed_at, p.started_at) > self._patience_s(name, child) / 2:
                wrong.append(f"{name} has not moved for {now - p.progressed_at:.0f} s")
        return wrong

    def ready(self) -> list[str]:
        """What is missing until vectors are served fresh. Empty: ready."""
        s = self.snapshot()
        groups = s.groups
        missing = []
        if len(groups) < max(self._groups, 1):
            missing.append(f"{len(groups)} of {self._groups} partition groups are restored")
        for name, child in list(self._children.items()):
            if name.startswith("shard-") and (child.status is None or child.status.stats is None):
                missing.append(f"{name} is being started")
        if any(not shard.source_up for shard in s.shards.values()):
            missing.append("Kafka does not answer")
        if any(not shard.sink_up for shard in s.shards.values()):
            missing.append("Redis does not answer")
        if s.publisher and s.publisher.release and s.publisher.sink_error:
            missing.append(f"Redis does not name the release: {s.publisher.sink_error}")
        phases = {g.phase for g in groups}
        if "waiting" in phases and current_release(self.settings.releases):
            missing.append("the release is being loaded")
        elif "waiting" in phases:
            missing.append(no_release(s, self.settings.learner, self.settings.release))
        if phases & {"starting", "replaying"}:
            missing.append("groups are catching up with what Redis has seen")
        return missing


def refuse_changed(settings: Settings, served: Manifest) -> None:
    """Raises SettingsError where the settings no longer fit the release that is served. Other fields, another encoder
    and images of another side begin another generation beside it."""
    before, now = served.session_gap_us / 1e6, settings.stream.session_gap_s
    if before != now:
        raise SettingsError(
            f"stream.session_gap_s is {now}, release {served.release} was made with {before}. It may not change while "
            "releases are served: set it back, or start a stream of another name."
        )


def refuse_other_state(settings: Settings, groups: int) -> None:
    """Raises SnapshotError where the groups' newest snapshots are of what this stream cannot become: before anything
    is moved or started."""
    stream, source = wide(settings.stream, settings.releases), settings.source
    if stream.nodes and groups > 1:
        source = source.with_mirror(settings.name)
    for group in range(groups):
        for path in folders(settings.group_folder(group))[:1]:
            try:
                found = Folder.open(path)
            except SnapshotError:
                continue  # its shard looks for the one before
            group_meta.check(found, source.topics, stream.columns, stream.shape)

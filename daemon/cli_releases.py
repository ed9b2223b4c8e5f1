"""The commands on releases, and on what they are measured against."""

import time
from typing import Annotated

import msgspec
import numpy as np
import typer
from rich.console import Group
from rich.table import Table

from actors import requests
from actors.requests import Request
from actors.served import REFUSED, current_release, numbers, read_manifest, read_release, served
from daemon.cli import ConfigOption, JsonOption, app, err, fetch_status, load_settings, out, say
from daemon.settings import Settings
from schemas.errors import AfreshError, ReleaseError

SNAPSHOT_S = 15.0


@app.command()
def releases(config: ConfigOption, as_json: JsonOption = False) -> None:
    """The releases that are on disk, newest first, with what they had to pass."""
    settings = load_settings(config)
    now = served(settings.releases)
    found = []
    folders = settings.releases, settings.releases / REFUSED
    every = [folder / str(number) for folder in folders for number in numbers(folder)]
    for path in sorted(every, key=lambda p: -int(p.name)):
        try:
            found.append((read_manifest(path), path.parent.name == REFUSED))
        except ReleaseError as error:
            err.print(str(error))

    def tables() -> Group:
        """What they are, and what they had to pass: both fit a terminal of 80 columns."""
        names = list(dict.fromkeys(g.name for m, _ in found for g in m.gates))
        of = Table("release", "gen.", "made (UTC)", "updates", "cosine", "neighbours")
        passed = Table("release", *names)
        for m, refused in found:
            marks = {now.release: "(current)", now.next: "(being filled)"}
            mark = "(refused)" if refused else marks.get(m.release, "")
            o = m.overlap_previous
            made = str(np.datetime64(m.created_us, "us").astype("datetime64[m]")).replace("T", " ")
            of.add_row(
                f"{m.release} {mark}".strip(), str(m.generation), made, f"{m.updates:,}",
                f"{o.cosine:.3f}" if o else "-", f"{o.neighbours:.2f} of {o.entities}" if o else "-",
            )  # fmt: skip
            gates = {g.name: f"{g.value:.3g}{'' if g.ok else '!'}" for g in m.gates}
            passed.add_row(str(m.release), *(gates.get(name, "") for name in names))
        notes = ["cosine, neighbours: agreement with the release before; !: a gate not passed."]
        if held := requests.held(settings.releases):
            notes.append(f"No release comes by itself: {held}. `afresh release` makes one.")
        return Group(of, passed, *notes)

    facts = [
        msgspec.to_builtins(m) | {"current": m.release == now.release, "refused": refused}
        for m, refused in found
    ]
    say(facts, as_json, tables)


@app.command()
def rollback(
    config: ConfigOption,
    release: Annotated[int, typer.Argument(help="0: the one before the current.")] = 0,
    timeout_s: Annotated[float, typer.Option(help="How long to wait for it.")] = 30.0,
) -> None:
    """Serve an older release again. None follows by itself until `afresh release`."""

    settings = load_settings(config)
    current = current_release(settings.releases)
    older = (number for number in numbers(settings.releases) if number < current)
    wanted = release or next(older, 0)
    if not wanted:
        raise AfreshError(
            f"there is no release before {current or 'the first'}: see afresh releases."
        )
    if wanted in numbers(settings.releases / REFUSED):
        raise ReleaseError(f"release {wanted} was refused by its gates and was never served.")
    read_release(settings.releases / str(wanted))  # whole, or it says why not
    _ask(settings, Request(rollback=wanted), timeout_s)
    now = served(settings.releases)
    if now.next == wanted:
        out.print(
            f"Release {wanted} is of generation {now.generation}: its vectors are written again first, beside those "
            f"of release {now.release}, and readers go over once every entity has one. No release comes by itself "
            "until afresh release."
        )
        return
    if now.release != wanted:
        raise AfreshError(
            f"release {now.release} is served, not {wanted}: the daemon's log says why."
        )
    out.print(
        f"Release {wanted} is served in place of {current}; vectors follow in the background. No release comes by "
        "itself until afresh release."
    )


@app.command()
def release(
    config: ConfigOption,
    force: Annotated[
        bool, typer.Option("--force", help="Whatever the gates say, but for parity.")
    ] = False,
    timeout_s: Annotated[float, typer.Option(help="How long to wait for it.")] = 120.0,
) -> None:
    """Make a release of the learner's newest snapshot, also after a rollback."""

    settings = load_settings(config)
    before = current_release(settings.releases)
    _snapshot(settings, timeout_s)
    _ask(settings, Request(force=force), timeout_s)
    now = served(settings.releases)
    if now.next:
        out.print(
            f"Release {now.next} is being filled as generation {now.generation}; readers go over to it once every "
            "entity has a vector."
        )
        return
    if now.release == before:
        raise AfreshError(
            "no release was made: the gates refuse it (afresh releases shows them; --force goes by), the learner has "
            "made no snapshot since the last, or a shard still takes up the one before. The daemon's log says which."
        )
    out.print(f"Release {now.release} is served.")


@app.command()
def reference(config: ConfigOption) -> None:
    """Take what comes next for normal: the reference that drift of inputs is measured against begins anew."""
    settings = load_settings(config)
    fetch_status(settings)  # says so where no daemon runs
    requests.ask_learner(settings.folder / "learner", requests.RENEWAL)
    out.print("The next records are the new reference of each field.")


def _snapshot(settings: Settings, timeout_s: float) -> None:
    """Asks the learner for one, and waits a while: it makes none where nothing was learnt since the last."""

    def newest() -> str:
        return str((fetch_status(settings)["learner"] or {}).get("snapshot", ""))

    before, end = newest(), time.monotonic() + min(timeout_s, SNAPSHOT_S)
    requests.ask_learner(settings.folder / "learner", requests.SNAPSHOT)
    while newest() == before and time.monotonic() < end:
        time.sleep(0.2)


def _ask(settings: Settings, request: Request, timeout_s: float) -> None:
    """Hands it to the publisher of the running daemon. Raises AfreshError where none takes it."""

    def dealt_with() -> int:
        """Over restarts of the publisher. Says so where no daemon runs."""
        return int((fetch_status(settings)["publisher"] or {}).get("requests", 0))

    done = dealt_with()
    requests.ask(settings.releases, request)
    end = time.monotonic() + timeout_s
    while dealt_with() == done:
        if time.monotonic() > end:
            raise AfreshError(
                f"the publisher did not take it within {timeout_s:.0f} s; it may still. See its log."
            )
        time.sleep(0.1)

"""The commands. Tables for people, `--json` for scripts; exit codes are those of schemas/errors.py."""

import json
import logging
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import structlog
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.errors import AfreshError

app = typer.Typer(
    name="afresh",
    help="Embeddings of streams that are never stale: reads Kafka, learns continually, serves from Redis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out, err = Console(markup=False), Console(stderr=True, markup=False)
"""Texts and names may have square brackets."""

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", envvar="AFRESH_CONFIG", help="Settings, a TOML file.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Entry point: expected errors become one line and their exit code."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=False)
            if sys.stderr.isatty()
            else structlog.processors.LogfmtRenderer(),
        ],
    )
    from daemon import cli_releases  # noqa: F401  # its commands

    try:
        app()
    except AfreshError as error:
        told = Text.assemble(("afresh:", "bold red"), f" {error}")
        err.print(told, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def load_settings(config: Path) -> Any:
    from daemon.settings import load

    return load(config)


def say(value: Any, as_json: bool, table: Callable[[], Any]) -> None:
    if as_json:
        sys.stdout.write(json.dumps(value, default=str) + "\n")
    else:
        out.print(table())


@app.command()
def run(
    config: ConfigOption,
    standby: Annotated[
        bool, typer.Option(help="Wait for the lease and take over when its holder goes.")
    ] = False,
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C; it goes on where the last one stopped."""
    from daemon.app import App

    settings = load_settings(config)
    code = App(settings).run(
        standby, lambda address: err.print(f"afresh: {settings.name} at {address}")
    )
    raise typer.Exit(code)


@app.command("check-config")
def check_config(config: Annotated[Path, typer.Argument(help="Settings, a TOML file.")]) -> None:
    """Read a settings file and say what is wrong with it."""
    from actors.capacity import capacity
    from daemon.settings import check

    s = load_settings(config)
    check(s)
    if s.stream.images:  # what timm and a file of weights say: the daemon itself never loads them
        from actors.learn import learner_of

        learner_of(s.learner, s.encoder, s.stream.shape, "cpu")
    slots = capacity(s.state, 1, s.stream.shape, s.encoder.window, s.encoder.kept)
    names = [f.name for f in s.stream.field] + [f"{f.name} of nodes" for f in s.stream.node]
    inputs = ", ".join(names) or "none but time"
    if s.stream.images:
        inputs = f"images of {s.stream.image.side} × {s.stream.image.side} pixels"
    out.print(
        f"{config} is well: stream {s.name!r} of {', '.join(s.source.topics)}, "
        f"inputs {inputs}, room for {slots:,} entities."
    )
    if s.stream.nodes:
        mirror = s.source.mirror_topic or f"{s.name}.mirror"
        out.print(
            f"Where its topics have several partitions, {mirror!r} must be there, of as many."
        )


@app.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave all of it running at the end.")
    ] = False,
    limit: Annotated[int, typer.Option(help="Replay so many flights only; 0: all.")] = 0,
) -> None:
    """Replay the flights of 2013 through a real Kafka, the daemon and a real Redis."""
    from daemon.demo import Demo

    raise typer.Exit(Demo(Console(), keep=keep, limit=limit).run())


@app.command()
def status(config: ConfigOption, as_json: JsonOption = False) -> None:
    """What the running daemon says of itself."""
    found = fetch_status(load_settings(config))
    say(found, as_json, lambda: _status_table(found))
    if found["health"]:
        raise typer.Exit(1)


def fetch_status(settings: Any) -> dict[str, Any]:
    """The daemon's /status. Raises AfreshError where none answers."""
    address_file = settings.folder / "address"
    address = (
        address_file.read_text()
        if address_file.exists()
        else f"http://{settings.http.host}:{settings.http.port}"
    )
    request = urllib.request.Request(f"{address}/status")  # noqa: S310 - our own address
    if token := settings.http.token():
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    # never by way of the environment's proxy, which would learn the token
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 401:
            raise AfreshError(f"the daemon at {address} answers {error.code}.") from error
        raise AfreshError(
            f"the daemon at {address} wants another token. It read http.token_file or http.token_env when it "
            "started: start it again, or give this command the same one."
        ) from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise AfreshError(
            f"no daemon of {settings.name!r} answers at {address} ({error}). Start it: afresh run --config …"
        ) from error
    return found


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _status_table(found: dict[str, Any]) -> Table:
    table = Table(title=f"{found['stream']} (epoch {found['epoch']})", show_header=False)
    groups = [g for shard in found["shards"].values() for g in shard["groups"]]
    learner, publisher = found["learner"] or {}, found["publisher"] or {}
    rows = [
        ("health", "; ".join(found["health"]) or "well"),
        ("ready", "; ".join(found["ready"]) or "yes"),
        ("records", f"{sum(s['accepted'] for s in found['shards'].values()):,}"),
        (
            "dead letters",
            f"{sum(sum(s['dead_letters'].values()) for s in found['shards'].values()):,}",
        ),
        ("lag", f"{sum(g['lag'] for g in groups):,} records"),
        ("held back", f"{sum(g['held_back'] for g in groups)} partitions wait for slower ones"),
        (
            "entities",
            f"{sum(g['entities'] for g in groups):,}, {sum(g['to_encode'] for g in groups):,} owed a vector",
        ),
        ("groups", ", ".join(f"{g['group']}: {g['phase']}" for g in groups)),
        ("release", f"{publisher.get('release', 0)}, generation {publisher.get('generation', 0)}"),
        *(
            [("being filled", f"release {n}, {sum(g['to_fill'] for g in groups):,} entities to go")]
            if (n := publisher.get("next_release"))
            else []
        ),
        ("updates", f"{learner.get('updates', 0):,}, loss {_short(learner.get('loss'))}"),
        *([("learning", "paused: what comes looks poisoned")] if found["learning_paused"] else []),
        ("effective rank", _short(learner.get("effective_rank"))),
        ("restarts", ", ".join(f"{k} {v}" for k, v in found["restarts"].items())),
    ]
    for row in rows:
        table.add_row(*row)
    return table


@app.command()
def lookup(
    entities: Annotated[list[str], typer.Argument(help="Names of entities.")],
    config: ConfigOption,
    as_json: JsonOption = False,
) -> None:
    """The current vectors of entities, as readers see them."""
    from daemon.reading import Reader

    found = Reader(load_settings(config)).lookup(entities)
    rows = [
        {
            "entity": entity,
            "found": e is not None,
            **(
                {}
                if e is None
                else {k: v for k, v in e.items() if k != "vector"}
                | {"vector": e["vector"].tolist()}
            ),
        }
        for entity, e in zip(entities, found, strict=True)
    ]

    def table() -> Table:
        t = Table("entity", "release", "count", "as of", "age", "vector")
        now = time.time()
        for row in rows:
            if not row["found"]:
                t.add_row(row["entity"], "-", "-", "-", "-", "no such entity")
                continue
            at = np.datetime64(row["time_us"], "us").astype("datetime64[s]")
            head = " ".join(f"{x:+.3f}" for x in row["vector"][:6])
            age = f"{now - row['time_us'] / 1e6:,.0f} s"
            t.add_row(
                row["entity"], str(row["release"]), str(row["count"]), str(at), age, f"{head} …"
            )
        return t

    say(rows, as_json, table)
    if not all(row["found"] for row in rows):
        raise typer.Exit(1)


@app.command()
def neighbours(
    entity: Annotated[str, typer.Argument(help="Name of an entity.")],
    config: ConfigOption,
    k: Annotated[int, typer.Option("-k", help="How many.")] = 10,
    cap: Annotated[int, typer.Option(help="Look at no more entities than this.")] = 200_000,
    as_json: JsonOption = False,
) -> None:
    """The nearest entities by cosine: SCAN and compare here, without a query engine."""
    from daemon.reading import Reader

    found, seen, capped = Reader(load_settings(config)).neighbours(entity, k, cap)
    if capped:
        err.print(f"Only {seen:,} entities were compared (--cap); there are more.")

    def table() -> Table:
        t = Table("entity", "cosine", "count", title=f"nearest to {entity} among {seen:,}")
        for row in found:
            t.add_row(row["entity"], f"{row['cosine']:.4f}", str(row["count"]))
        return t

    say({"entity": entity, "compared": seen, "capped": capped, "neighbours": found}, as_json, table)


@app.command()
def score(
    source: Annotated[str, typer.Argument(help="A node.")],
    targets: Annotated[list[str], typer.Argument(help="Other nodes.")],
    config: ConfigOption,
    now: Annotated[
        str, typer.Option(help="As of this moment, ISO 8601; the stream's own time may lie back.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Of a graph: where a node's next edge leads, by the released pair scorer."""
    from actors.rejected import Rejected
    from actors.times import to_us
    from daemon.reading import Reader

    try:
        now_us = to_us(now, "iso") if now else time.time_ns() // 1000
    except Rejected as error:
        raise typer.BadParameter(
            f"{now!r} is {error}, such as 2024-01-31T12:00Z.", param_hint="--now"
        ) from None
    found = Reader(load_settings(config)).score(source, list(dict.fromkeys(targets)), now_us)
    found.sort(key=lambda each: -each[1])

    def table() -> Table:
        t = Table("node", "score", title=f"where the next edge of {source} leads")
        for name, logit, known in found:
            t.add_row(name, f"{logit:.3f}" if known else "not known")
        return t

    say(
        [{"node": n, "score": logit if known else None} for n, logit, known in found],
        as_json,
        table,
    )


@app.command()
def forget(
    entity: Annotated[str, typer.Argument(help="Name of the entity to delete everywhere.")],
    config: ConfigOption,
    timeout_s: Annotated[float, typer.Option(help="How long to wait for it.")] = 60.0,
) -> None:
    """Delete an entity: a null value into Kafka, then wait until Redis has let it go."""
    from daemon.reading import forget as forget_entity

    if forget_entity(load_settings(config), entity, timeout_s):
        out.print(
            f"{entity} is forgotten: its state, its place in the replay and its vector are gone."
        )
    else:
        out.print(
            f"The deletion of {entity} is in Kafka. Nobody has a vector before the first release; its state "
            "goes when the daemon gets to it."
        )


@app.command()
def backfill(
    files: Annotated[list[str], typer.Argument(help="Parquet, CSV or JSONL files, or patterns.")],
    config: ConfigOption,
    then: Annotated[
        str,
        typer.Option(
            help="Where live reading starts: earliest, latest, an ISO time, or offsets 0:120,1:98."
        ),
    ],
) -> None:
    """Take history from files by the same path, write Redis once, snapshot; live reading follows at --then."""
    from daemon.backfill import Backfill

    Backfill(load_settings(config), files, then, err).run()

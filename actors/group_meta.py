"""What a group's snapshot says beside its slabs: positions of Redis, whom to delete, forget and bury."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actors.folders import Folder
from actors.mirror import Mark
from schemas.errors import SnapshotError
from schemas.stream import Shape

if TYPE_CHECKING:
    from actors.group import Group

FILES = "files:"  # how the one topic of a backfill begins; no topic of Kafka has such a name


def check(found: Folder, topics: Sequence[str], fields: Sequence[str], shape: Shape) -> None:
    """Raises SnapshotError where it is of other settings."""
    graph = shape.graph
    fixed = list(fields) if shape.unit != "events" else found.meta["fields"]
    for what, now in (("topics", list(topics)), ("fields", fixed)):
        if found.meta[what] != now:
            raise SnapshotError(
                f"{found.path} has the {what} {found.meta[what]}, the settings name {now}. "
                + _remedy(found.meta[what])
            )
    if found.meta.get("graph", False) != graph:
        raise SnapshotError(
            f"{found.path} is of a stream of another kind than stream.kind. " + _remedy([])
        )


def of(group: "Group", forgets: Sequence[int]) -> dict[str, Any]:
    """forgets: deleted entities that the learner has not yet durably forgotten."""
    return {
        "fields": list(group.fields),
        "topics": list(group.topics),
        "owed_deletions": list(group.owed_deletions),
        "forgets": list(forgets),
        "swap": group.swap,
        "acked": group.acked,
        "loss": group.acked_loss,
        "graph": group.state.shape.graph,
        "buried": [[node, since] for node, since in group.buried.since.items()],
        "mirrored": [[*source, *mark] for source, mark in group.mirrored.items()],
        "news": group.news.pending,
        "lacking": {name: list(at) for name, at in group.lacking.items()},
    }


def take(group: "Group", meta: dict[str, Any]) -> None:
    """Makes a new group continue; what is asked for by `get` came later than the format."""
    group.owed_deletions = dict.fromkeys(meta["owed_deletions"])
    group.swap, group.acked = meta["swap"], meta["acked"]
    group.loss = group.acked_loss = group.held_loss = meta["loss"]
    group.held = list(group.acked)
    group.forgets = meta["forgets"]
    group.buried.since.update(meta.get("buried", []))
    group.mirrored = {(g, t): Mark(*at) for g, t, *at in meta.get("mirrored", [])}
    group.news.new.update(meta.get("news", []))
    group.lacking = {name: list(at) for name, at in meta.get("lacking", {}).items()}


def note_new_fields(group: "Group", meta: dict[str, Any], fields: Sequence[str]) -> None:
    """Rows up to here lack what the snapshot did not know; what is named no more nobody lacks."""
    group.lacking = {name: at for name, at in group.lacking.items() if name in fields}
    known = meta["fields"]
    if known and group.state.shape.unit == "events":
        new = (name for name in fields if name not in known)
        group.lacking |= {name: list(group.positions) for name in new}


def _remedy(found: list[str]) -> str:
    if found[:1] and found[0].startswith(FILES):
        return "A backfill was not finished: give that command again, it goes on where it stood."
    return "They may not change over a snapshot: set them back, or start a stream of another name."

"""What a group's snapshot says beside its slabs: positions of Redis, whom to delete, forget and bury."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actors.cut import Columns
from actors.folders import Folder
from actors.mirror import Mark
from schemas.errors import SnapshotError
from schemas.stream import RESERVED, WHOLE_RESERVED, Shape

if TYPE_CHECKING:
    from actors.group import Group

KINDS = "number", "category"
FILES = "files:"  # how the one topic of a backfill begins; no topic of Kafka has such a name


def check(found: Folder, topics: Sequence[str], fields: Sequence[str], shape: Shape) -> None:
    """Raises SnapshotError where it is of other settings that may not change."""
    meta = found.meta
    if meta["topics"] != list(topics):
        raise SnapshotError(
            f"{found.path} has the topics {meta['topics']}, the settings name {list(topics)}. "
            + _remedy(meta["topics"])
        )
    unit = meta.get("unit", shape.unit)  # came later than the format
    is_graph, has_images = meta.get("graph", False), meta.get("side", 0) > 0
    if (unit, is_graph, has_images) != (shape.unit, shape.graph, shape.side > 0):
        raise SnapshotError(
            f"{found.path} is of a stream of another kind than stream.kind and stream.unit. "
            + _remedy([])
        )
    before, now = Columns.saved(meta), Columns.of(fields, shape)
    own = set(WHOLE_RESERVED if shape.whole else RESERVED) if shape.graph else set()
    for then, here in zip(before.blocks, now.blocks, strict=True):
        of_graph, wanted = ([name for name in names if name in own] for names in (then, here))
        if of_graph != wanted:
            raise SnapshotError(
                f"{found.path} has the fields {of_graph} as every edge has, with the settings they are {wanted}: look "
                "at stream.edge_type. " + _remedy([])
            )
    for a, b in ((0, 1), (1, 0), (2, 3), (3, 2)):  # numbers and categories, of records and of nodes
        if changed := set(before.blocks[a]) & set(now.blocks[b]):
            raise SnapshotError(
                f"{found.path} has the field {min(changed)!r} as a {KINDS[a % 2]}, the settings as a {KINDS[b % 2]}: "
                "give what it is now another name."
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
        "unit": group.state.shape.unit,
        "buried": [[node, since] for node, since in group.buried.since.items()],
        "mirrored": [[*source, *mark] for source, mark in group.mirrored.items()],
        "unnamed": group.unnamed.blocks if group.edges is not None else [],
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
    unnamed = meta.get("unnamed")
    group.unnamed = Columns(*map(tuple, unnamed)) if unnamed else Columns.saved(meta)
    group.news.new.update(meta.get("news", []))
    group.lacking = {name: list(at) for name, at in meta.get("lacking", {}).items()}


def note_new_fields(group: "Group", meta: dict[str, Any], fields: Sequence[str]) -> None:
    """Rows up to here lack what the snapshot did not know; what is named no more nobody lacks."""
    group.lacking = {name: at for name, at in group.lacking.items() if name in fields}
    known = meta["fields"]
    if known:
        new = (name for name in fields if name not in known)
        group.lacking |= {name: list(group.positions) for name in new}


def _remedy(found: list[str]) -> str:
    if found[:1] and found[0].startswith(FILES):
        return "A backfill was not finished: give that command again, it goes on where it stood."
    return "They may not change over a snapshot: set them back, or start a stream of another name."

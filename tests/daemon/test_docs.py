"""docs/ say what the code does: every key of the settings with its type and default, every metric, no other."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import NODEFAULT, inspect
from prometheus_client.core import Metric

from daemon.metrics import TABLE, registry
from daemon.settings import Settings, check, parse
from daemon.totals import Snapshot
from schemas.errors import AfreshError
from schemas.stats import (
    Changes,
    GroupStats,
    LabelStats,
    LearnerStats,
    PublisherStats,
    ShardStats,
)

ROOT = Path(__file__).parent.parent.parent
Row = tuple[str, str, str]


def table(page: str, first: str) -> list[list[str]]:
    """The cells of every row whose first cell is a word in backticks that `first` matches."""
    rows = []
    for line in (ROOT / "docs" / page).read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and re.fullmatch(f"`{first}`", cells[0]):
            rows.append(cells)
    return rows


# -- settings ---------------------------------------------------------------------------------------


def settings_rows(kind: type, prefix: str = "") -> Iterator[Row]:
    """(key, type, default) of everything below a section. A tagged object's key names its tag."""
    for field in inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        key = prefix + field.encode_name
        parts = list(options(field.type))
        structs = [part for part in parts if isinstance(part, inspect.StructType)]
        if not structs:
            yield key, " or ".join(map(described, parts)), defaulted(field)
        if structs and structs[0].tag_field:
            names = ", ".join(f"`{struct.tag}`" for struct in structs)
            yield f"{key}.{structs[0].tag_field}", names, "required"
        several = any(isinstance(part, inspect.VarTupleType) for part in members(field.type))
        for struct in structs:
            tag = f"[{struct.tag}]" if struct.tag and several else ""
            yield from settings_rows(struct.cls, f"{key}{tag}.")


def members(kind: inspect.Type) -> list[inspect.Type]:
    kind = kind.type if isinstance(kind, inspect.Metadata) else kind
    return list(kind.types) if isinstance(kind, inspect.UnionType) else [kind]


def options(kind: inspect.Type) -> Iterator[inspect.Type]:
    """The types that a key may have, objects in lists unpacked."""
    for member in members(kind):
        item = member.item_type if isinstance(member, inspect.VarTupleType) else None
        inner = list(members(item)) if item is not None else []
        if any(isinstance(part, inspect.StructType) for part in inner):
            yield from inner
        elif not isinstance(member, inspect.NoneType):
            yield member


def described(kind: inspect.Type) -> str:
    match kind:
        case inspect.IntType() | inspect.FloatType():
            name = "integer" if isinstance(kind, inspect.IntType) else "number"
            bounds = (("≥", kind.ge), (">", kind.gt), ("≤", kind.le), ("<", kind.lt))
            limits = ", ".join(
                f"{sign} {value:,.10g}" for sign, value in bounds if value is not None
            )
            return f"{name} {limits}".strip()
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType():
            return ", ".join(f"`{value}`" for value in kind.values)
        case inspect.EnumType():
            return ", ".join(f"`{member.value}`" for member in kind.cls)
        case inspect.VarTupleType():
            return "list of texts"
        case inspect.TupleType():
            return f"list of {len(kind.item_types)} numbers"
    return "text"


def defaulted(field: inspect.Field) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not NODEFAULT else field.default_factory()
    return "–" if value in (None, "") else f"`{json.dumps(value)}`"


def test_every_key_is_documented_with_its_type_and_default() -> None:
    told = {
        tuple(cell.strip("`") if i == 0 else cell for i, cell in enumerate(row[:3]))
        for row in table("operations.md", r"[a-z0-9_]+(\[?\.?[a-z0-9_\]]+)*")
    }
    wanted = set(settings_rows(Settings))
    assert wanted - told == set()
    assert told - wanted == set()


def test_every_key_has_a_meaning() -> None:
    assert all(row[3] for row in table("operations.md", r"[a-z0-9_.\[\]]+"))


# -- metrics ----------------------------------------------------------------------------------------


def filled(kind: type) -> object:
    """Stats of which every value is a number, so that every metric has a sample."""
    found = kind()
    for field in dataclasses.fields(found):
        value = getattr(found, field.name)
        if isinstance(value, float) and math.isnan(value):
            setattr(found, field.name, 1.0)
        if isinstance(value, dict):
            setattr(found, field.name, {"x": 1})
        if isinstance(value, Changes):
            setattr(found, field.name, filled(Changes))
    return found


def everything() -> list[Metric]:
    shard = filled(ShardStats)
    assert isinstance(shard, ShardStats)
    shard.groups = [GroupStats(0)]
    learner, publisher = filled(LearnerStats), filled(PublisherStats)
    snapshot = Snapshot("s", {"shard-0": shard}, learner, publisher, {"shard": 0})  # type: ignore[arg-type]
    snapshot.labels = filled(LabelStats)  # type: ignore[assignment]
    return list(registry(lambda: snapshot).collect())


def exposed(metric: Metric) -> Row:
    """Name as /metrics has it, type, labels."""
    suffix = {"counter": "_total", "info": "_info"}.get(metric.type, "")
    labels = sorted({label for sample in metric.samples for label in sample.labels} - {"le"})
    return metric.name + suffix, metric.type, ", ".join(labels)


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    told = {(row[0].strip("`"), row[1], row[2]) for row in table("metrics.md", r"afresh_\w+")}
    assert told == {exposed(metric) for metric in everything()}


def test_every_label_that_has_a_closed_set_is_explained() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    told = set(re.findall(r"^\| `(\w+)` \| [^|]+ \|$", text, re.MULTILINE))
    assert told == {label for spec in TABLE if spec.kind != "info" for label in spec.labels}


# -- the rest ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_every_whole_settings_file_is_well(page: str) -> None:
    blocks = re.findall(r"```toml\n(name = .*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        check(parse(block))


def test_every_exit_code_is_documented() -> None:
    told = {
        int(row)
        for row in re.findall(
            r"^\| (\d+) \|", (ROOT / "docs/operations.md").read_text(), re.MULTILINE
        )
    }
    waiting, codes = [AfreshError], {0}
    while waiting:
        error = waiting.pop()
        codes.add(error.exit_code)
        waiting += error.__subclasses__()
    assert codes <= told


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)|(?:src|srcset)=\"([^\":]+)\"", text)
    missing = [
        link
        for pair in links
        for link in pair
        if link and not (ROOT / page).parent.joinpath(link).exists()
    ]
    assert not missing


# -- guarantees -------------------------------------------------------------------------------------


def test_every_test_that_a_guarantee_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "guarantees.md").read_text()))
    there = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 30
    assert not {name for name in named if f"def {name}(" not in there}

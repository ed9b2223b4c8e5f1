"""The walls between the packages, checked in the code as it is written."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("schemas", "learning", "actors", "daemon")
SHARD_PATH = ("state", "encode", "shard", "sink", "decode", "source", "snapshot", "lease")


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from runtime_nodes(child)


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names that a file imports anywhere; `from a import b` counts as a and a.b."""
    found: set[str] = set()
    for node in runtime_nodes(tree(path)):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
            found.update(f"{node.module}.{name.name}" for name in node.names)
    return frozenset(found)


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def reached(path: Path) -> dict[Path, Path]:
    """Our files that importing `path` loads, each with the file that asked for it."""
    found = {path: path}
    waiting = [path]
    while waiting:
        here = waiting.pop()
        for name in imports(here):
            parts = name.split(".")
            steps = [ROOT.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
            for step in steps if parts[0] in LAYERS else ():
                for file in (step / "__init__.py", step.with_suffix(".py")):
                    if file.exists() and file not in found:
                        found[file] = here
                        waiting.append(file)
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) + 1 :]) | {"benchmarks", "examples", "tests"}
    wrong = {named(path): bad for path in files(layer) if (bad := packages(path) & above)}
    assert not wrong


def test_ray_is_imported_in_one_place() -> None:
    assert {named(path) for path in files(*LAYERS) if "ray" in packages(path)} <= {
        "actors/spawn.py"
    }


def test_learning_knows_no_outside_world() -> None:
    banned = {"ray", "kafka", "redis", "time"}
    wrong = {named(path): bad for path in files("learning") if (bad := packages(path) & banned)}
    assert not wrong
    environment = re.compile(r"\bos\.(environ|getenv|putenv)|from os import .*(environ|getenv)")
    assert not [named(path) for path in files("learning") if environment.search(path.read_text())]


@pytest.mark.parametrize("module", SHARD_PATH)
def test_the_shard_does_not_load_torch(module: str) -> None:
    path = ROOT / "actors" / f"{module}.py"
    if not path.exists():
        pytest.skip(f"{named(path)} is not written yet")
    heavy = {"torch", "ray"}
    wrong = {
        named(file): f"imported by {named(asked)}"
        for file, asked in reached(path).items()
        if packages(file) & heavy
    }
    assert not wrong


@pytest.mark.parametrize(
    "name",
    [
        "requirements.txt",
        "deploy/requirements-uv.txt",
        "benchmarks/requirements-lightly.txt",
        "benchmarks/requirements-tgn.txt",
    ],
)
def test_requirements_are_pinned_and_carry_no_address(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash=)", text, re.MULTILINE)
    pins = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert pins
    assert all("==" in pin and pin.endswith("\\") for pin in pins)


def test_no_test_sleeps() -> None:
    banned = "sle" + "ep("
    assert not [named(path) for path in files("tests") if banned in path.read_text()]

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import reference
from benchmarks.reference import Missing, Reference

SCRIPT = """
import json, pathlib, sys
import numpy as np
what, source, target = sys.argv[1:]
if what == "fail":
    sys.exit("no such thing")
log = pathlib.Path(__file__).with_suffix(".log")
log.write_text(log.read_text() + what + "\\n" if log.exists() else what + "\\n")
pathlib.Path(target).write_text(json.dumps({"sum": float(np.load(source)["x"].sum())}))
"""


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reference:
    monkeypatch.setattr(reference, "BUILD", tmp_path / "build")
    monkeypatch.setattr(Reference, "python", lambda _: Path(sys.executable))
    (tmp_path / "script.py").write_text(SCRIPT)
    return Reference("toy", tmp_path / "script.py", "nothing==1")


def asked(one: Reference) -> list[str]:
    return one.script.with_suffix(".log").read_text().split()


def test_an_answer_is_remembered_until_rows_or_script_change(one: Reference) -> None:
    x = {"x": np.arange(4)}
    answer = one.ask("add", x, ".json")
    assert json.loads(answer.read_text()) == {"sum": 6.0}
    assert one.ask("add", x, ".json") == answer and asked(one) == ["add"]
    assert one.ask("add", {"x": np.arange(5)}, ".json") != answer
    one.script.write_text(SCRIPT + "# changed")
    assert one.ask("add", x, ".json") != answer
    assert asked(one) == ["add"] * 3
    assert not list(answer.parent.glob("*.rows.npz"))


def test_a_figure_is_measured_anew(one: Reference) -> None:
    assert [one.measure({"x": np.ones(3)}, "sum") for _ in range(2)] == [3.0, 3.0]
    assert asked(one) == ["speed", "speed"]


def test_a_run_that_fails_says_why(one: Reference) -> None:
    with pytest.raises(Missing, match="no such thing"):
        one.ask("fail", {"x": np.ones(1)}, ".json")

"""The status page: its data, its policy, and how it looks to a browser."""

import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest

from actors.folders import write_folder
from actors.served import set_current
from daemon.history import EVERY_S, FIGURES, KEPT, WINDOW, History
from daemon.http import Http
from daemon.page import HEADERS, HTML, Page, Releases, policy
from daemon.scatter import Sample
from daemon.settings import HttpConfig
from daemon.totals import Snapshot
from schemas.errors import SinkDown
from schemas.published import Gate, Manifest, Overlap
from schemas.stats import (
    BadLetter,
    Changes,
    Concept,
    GroupStats,
    LearnerStats,
    PublisherStats,
    ShardStats,
)
from tests.daemon.browser import browse
from tests.daemon.prometheus import ROOT
from tests.daemon.test_metrics import latency

# -- the last minutes -------------------------------------------------------------------------------


CHANGES = Changes(
    0.84, 1e-9, 300, {"airline": 0.81}, ["00ff00ff00ff00ff"], [Concept(0.02, 0.31, ["0123456789abcdef"])], 0.29
)  # fmt: skip


def snapshot(turn: int) -> Snapshot:
    """A shard that takes 10 records a second, each fresh after 4 ms."""
    shard = ShardStats(
        accepted=20 * turn, dead_letters={"not_json": turn}, freshness=latency(*[0.004] * turn),
        source_up=True, sink_up=True,
        groups=[GroupStats(0, "serving", lag=3, entities=7, release=2), GroupStats(1, "paused", entities=5)],
    )  # fmt: skip
    return Snapshot(
        "flights",
        {"shard-0": shard},
        LearnerStats(loss=0.5, effective_rank=1.5, changes=CHANGES),
        PublisherStats(release=2, held="rolled back to 2"),
    )


def history(turns: int) -> History:
    found = History()
    for turn in range(turns):
        found.add(turn * EVERY_S, snapshot(turn))
    return found


def last(found: History) -> dict[str, float | None]:
    return {figure["key"]: figure["points"][-1] for figure in found.told()}


def test_rates_are_of_the_last_half_minute() -> None:
    found = last(history(2 * WINDOW))
    assert found == {
        "records": 10.0, "p50": 0.005, "p99": 0.005, "lag": 3, "entities": 12, "dead": 29, "loss": 0.5,
        "held_out": None, "rank": 1.5, "release": 2, "embedding": None, "drift": None,
    }  # fmt: skip


def test_what_was_slow_before_the_window_is_forgotten() -> None:
    made = History()
    slow = snapshot(1)
    slow.shards["shard-0"].freshness = latency(100.0)
    made.add(0.0, slow)
    for turn in range(1, WINDOW + 3):
        later = snapshot(turn)
        later.shards["shard-0"].freshness = latency(100.0, *[0.004] * turn)
        made.add(turn * EVERY_S, later)
    assert last(made)["p99"] == 0.005


def test_without_records_there_is_no_freshness() -> None:
    made = History()
    for turn in range(3):
        made.add(turn * EVERY_S, snapshot(4))
    assert last(made)["p99"] is None
    assert last(made)["records"] == 0


def test_the_ring_is_bounded_and_asks_every_two_seconds() -> None:
    made = history(KEPT + 50)
    assert {len(figure["points"]) for figure in made.told()} == {KEPT}
    now_s = (KEPT + 49) * EVERY_S
    assert not made.due(now_s + EVERY_S / 2)
    assert made.due(now_s + EVERY_S)
    assert History().due(0.0)


def test_before_anything_is_known_there_is_nothing_to_show() -> None:
    made = History()
    assert [figure["points"] for figure in made.told()] == [[]] * len(FIGURES)
    made.add(0.0, Snapshot("s"))
    assert last(made)["records"] is None and last(made)["loss"] is None


# -- releases ---------------------------------------------------------------------------------------


def release(folder: Path, number: int, ok: bool = True) -> None:
    gate = Gate("parity", 2e-7 if ok else 0.3, 1e-5, ok)
    made = Manifest(
        stream="flights", release=number, generation=1, created_us=number * 10**12, dim=8, window=8,
        entity="e", time="t", time_unit="s", fields=(), numbers=(), categories=(), session_gap_us=1,
        state=8, encode=(), encode_out=(), encode_sha256="", updates=20 * number, gates=(gate,),
        overlap_previous=Overlap(number - 1, 9, 0.97 if ok else np.nan, 0.8) if number > 1 else None,
    )  # fmt: skip
    write_folder(
        folder if ok else folder / "refused", str(number), [], lambda: msgspec.to_builtins(made)
    )


def test_releases_are_the_newest_first_and_refused_ones_among_them(tmp_path: Path) -> None:
    for number in (1, 2, 4):
        release(tmp_path, number)
    release(tmp_path, 3, ok=False)
    set_current(tmp_path, 4)
    told = Releases(tmp_path)
    found = told.told()
    assert [(r["release"], r["current"], r["refused"]) for r in found] == [
        (4, True, False), (3, False, True), (2, False, False), (1, False, False),
    ]  # fmt: skip
    assert found[1]["gates"] == [{"name": "parity", "value": 0.3, "threshold": 1e-5, "ok": False}]
    assert (found[0]["overlap"]["cosine"], found[3]["overlap"]) == (0.97, None)
    release(tmp_path, 5)
    set_current(tmp_path, 5)
    assert [r["release"] for r in told.told() if r["current"]] == [5]


def test_a_damaged_release_is_left_out(tmp_path: Path) -> None:
    release(tmp_path, 1)
    release(tmp_path, 2)
    (tmp_path / "2" / "manifest.json").write_text("{")
    assert [r["release"] for r in Releases(tmp_path).told()] == [1]
    assert Releases(tmp_path / "none").told() == []


# -- over HTTP --------------------------------------------------------------------------------------

LETTER = BadLetter("not_json", "the message: … <b>is</b> bad", "flights", 1, 77, 1_700_000_000_000)


def sample(n: int) -> Sample:
    rng = np.random.default_rng(0)
    names = [f"{'N' if i % 2 else 'KLM'}{i}" for i in range(200)]
    return Sample(1, names, rng.normal(size=(200, 8)).astype(np.float32), np.arange(200))


@contextmanager
def served(folder: Path, snapshot_now: Snapshot, sampled: object = sample) -> Iterator[str]:
    page = Page(history(20), Releases(folder), sampled)  # type: ignore[arg-type]
    http = Http(
        HttpConfig(port=0), lambda: snapshot_now, list, lambda: ["Redis does not answer"], page
    )
    try:
        yield http.start()
    finally:
        http.stop()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    release(tmp_path, 1)
    release(tmp_path, 2, ok=False)
    set_current(tmp_path, 1)
    now = snapshot(20)
    now.shards["shard-0"].letters, now.learning_paused = [LETTER], True
    with served(tmp_path, now) as found:
        yield found


def test_the_page_says_what_is_known(address: str) -> None:
    found = httpx.get(f"{address}/page.json").json()
    assert (found["stream"], found["ready"], found["health"]) == (
        "flights",
        ["Redis does not answer"],
        [],
    )
    assert [(g["group"], g["phase"], g["shard"]) for g in found["groups"]] == [
        (0, "serving", "shard-0"), (1, "paused", "shard-0"),
    ]  # fmt: skip
    assert found["letters"] == [msgspec.to_builtins(LETTER)]
    assert found["up"] == {"Kafka": True, "Redis": True}
    assert found["changes"]["fields"] == {"airline": 0.81}
    assert [r["release"] for r in found["releases"]] == [2, 1]


def test_the_map_has_points_and_no_names(address: str) -> None:
    answer = httpx.get(f"{address}/map.json")
    found = answer.json()
    assert len(found["points"]) == 200
    assert found["legend"] == ["KLM", "N"]
    assert "KLM4" not in answer.text


def test_redis_that_is_down_is_said_in_the_maps_place(tmp_path: Path) -> None:
    def down(n: int) -> Sample:
        raise SinkDown("Redis at h:1: refused")

    with served(tmp_path, Snapshot("s"), down) as address:
        assert httpx.get(f"{address}/map.json").json() == {"reason": "Redis at h:1: refused"}
        assert httpx.get(f"{address}/page.json").json()["groups"] == []


def test_its_policy_lets_it_reach_nothing_but_the_daemon(address: str) -> None:
    answer = httpx.get(f"{address}/")
    assert answer.headers["content-type"].startswith("text/html")
    told = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert (told["default-src"], told["connect-src"], told["frame-ancestors"]) == (
        "'none'",
        "'self'",
        "'none'",
    )
    for kind in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[\w+/]{43}='", told[kind])
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert policy(HTML.replace("use strict", "use nothing")) != policy(), (
        "another script, another policy"
    )


def test_the_page_is_whole_in_itself() -> None:
    assert not re.search(r"https?://|@import|url\(|\b(src|href)=\"(?!data:)", HTML)
    assert "innerHTML" not in HTML


def test_a_package_brings_it_along() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    there = {
        path.name for path in (ROOT / "daemon").iterdir() if path.is_file() and path.suffix != ".py"
    }
    assert there == set(settings["tool"]["setuptools"]["package-data"]["daemon"])


def test_a_browser_shows_it(address: str, tmp_path: Path) -> None:
    seen = browse(f"{address}/", tmp_path)
    assert seen.console == []
    assert {url.removeprefix(address) for url in seen.asked} == {"/page.json", "/map.json"}
    shown = {
        key: seen.text(key)
        for key in ("records", "p50", "p99", "lag", "entities", "dead", "loss", "held_out")
    }
    assert shown == {
        "records": "10/s", "p50": "≤ 5 ms", "p99": "≤ 5 ms", "lag": "3", "entities": "12",
        "dead": "19", "loss": "0.500", "held_out": "–",
    }  # fmt: skip
    assert (
        'id="tile-rank" class="tile bad"' in seen.dom
        or 'class="tile bad" id="tile-rank"' in seen.dom
    )
    for text in (
        "not ready",
        "Redis does not answer",
        "paused",
        "1 current",
        "2 refused",
        "flights [1] @ 77",
        "rolled back to 2",
        "Nothing is learnt",
        "KLM",
        "84% of the time",
        "airline",
        "81%",
        "2.0%",
        "0123456789abcdef",
    ):
        assert text in seen.dom, text
    assert "&lt;b&gt;is&lt;/b&gt; bad" in seen.dom, "text stays text"


MEASURES = """
const nodes = () => document.querySelectorAll("*").length;
let first = 0, shown = 0, edge = 0;
document.body.style.width = "390px";
const use = show;
show = found => {
  use(found);
  shown += 1;
  if (shown === 60) {
    first = nodes();
    const parts = document.querySelectorAll("h1, .badge, #when, li, .tile, section, canvas");
    edge = Math.ceil(Math.max(...[...parts].map(part => part.getBoundingClientRect().right)));
  }
  Object.assign(document.body.dataset, {
    shown, grown: nodes() - first, records: $("tile-records").children[1].textContent,
    edge,
  });
};
"""


def test_it_stays_live_for_an_hour_and_fits_a_phone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the browser's own time, which waits for answers alone. One more record a second at each look."""
    html = HTML.replace("every(2000,", f"{MEASURES}every(2000,")
    monkeypatch.setattr("daemon.http.HTML", html)
    monkeypatch.setattr("daemon.http.HEADERS", HEADERS | {"Content-Security-Policy": policy(html)})
    moving, asked = History(), 0

    def now() -> Snapshot:
        nonlocal asked
        asked += 1
        found = snapshot(asked)
        found.shards["shard-0"].accepted = asked * asked
        moving.add(asked * EVERY_S, found)
        return found

    release(tmp_path, 1)
    set_current(tmp_path, 1)
    http = Http(HttpConfig(port=0), now, list, list, Page(moving, Releases(tmp_path), sample))
    try:
        seen = browse(f"{http.start()}/", tmp_path, "--virtual-time-budget=3600000")
    finally:
        http.stop()
    assert seen.console == []
    told = {
        key: re.search(rf'data-{key}="([^"]*)"', seen.dom)
        for key in ("shown", "grown", "records", "edge")
    }
    value = {key: found[1] for key, found in told.items() if found}
    assert int(value["shown"]) >= 1700, "every two seconds"
    assert value["grown"] == "0", "what it shows anew takes the place of what it showed"
    of_last = int(value["records"].removesuffix("/s").replace(",", ""))
    assert abs(of_last - int(value["shown"])) < 60, "the tile is of the last look"
    assert 300 < int(value["edge"]) <= 390, "on a phone nothing but tables reaches beyond the edge"


def test_a_browser_says_when_nobody_answers(tmp_path: Path) -> None:
    """The page of a daemon that has gone: as served, with its data away."""
    page = tmp_path / "page.html"
    page.write_text(HTML)
    assert "no answer" in browse(page.as_uri(), tmp_path).dom


def test_the_browser_would_tell_of_a_request_and_of_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<img src="http://outside.invalid/x.png"><script>throw new Error("mine")</script>'
    )
    seen = browse(page.as_uri(), tmp_path)
    assert seen.asked == {"http://outside.invalid/x.png"}
    assert any("mine" in line for line in seen.console)


def test_numbers_are_json(address: str) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(httpx.get(f"{address}/page.json").text, parse_constant=refuse)

"""Grafana's dashboard, deploy/grafana/afresh.json, as plain data. `make docs` writes it.

A panel is one line in ROWS. Every expression is parsed by promtool and its metrics are looked for in the running
daemon by the tests. `$stream` is chosen in Grafana; so is the Prometheus that is asked."""

import json
from typing import Any

Panel = dict[str, Any]
WIDTH, HEIGHT, LOW = 24, 7, 4  # of the grid; of a panel; of a line of numbers
RATE = "[$__rate_interval]"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
GOOD, WARN, BAD = "green", "orange", "red"


def of(metric: str, *more: str) -> str:
    """The metric's series of the chosen stream; `more`: other matchers."""
    matchers = ",".join(('stream="$stream"', *more))
    return f"{metric}{{{matchers}}}"


def rate(metric: str, *more: str) -> str:
    return f"rate({of(metric, *more)}{RATE})"


def quantile(q: float, metric: str) -> str:
    return f"histogram_quantile({q}, sum by (le) ({rate(metric + '_bucket')}))"


def per(label: str, inner: str) -> str:
    return f"sum by ({label}) ({inner})"


def stat(title: str, expr: str, unit: str, text: str, *steps: float, down: bool = False) -> Panel:
    """One number. `steps`: from where on it is orange, then red; `down`: red, orange, green, going up."""
    panel = _panel("stat", title, [(expr, "")], unit, text, 4)
    panel["fieldConfig"]["defaults"]["thresholds"] = _steps(steps, down)
    panel["options"] = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value", "graphMode": "area", "textMode": "auto",
    }  # fmt: skip
    return panel


def lines(
    title: str,
    series: list[tuple[str, str]],
    unit: str,
    text: str,
    *steps: float,
    down: bool = False,
    width: int = 8,
    **custom: Any,
) -> Panel:
    """Series (expression, legend) over time, with dashed lines at `steps`."""
    panel = _panel("timeseries", title, series, unit, text, width)
    defaults = panel["fieldConfig"]["defaults"]
    defaults["thresholds"] = _steps(steps, down)
    defaults["custom"] = {
        "fillOpacity": 8, "lineWidth": 1, "showPoints": "never", "spanNulls": False,
        "thresholdsStyle": {"mode": "dashed" if steps else "off"}, **custom,
    }  # fmt: skip
    panel["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel


def stacked(title: str, series: list[tuple[str, str]], unit: str, text: str) -> Panel:
    return lines(title, series, unit, text, stacking={"mode": "normal", "group": "A"})


def heatmap(title: str, metric: str, text: str) -> Panel:
    """A histogram over time."""
    panel = _panel(
        "heatmap", title, [(per("le", rate(metric + "_bucket")), "{{le}}")], "s", text, 8
    )
    panel["targets"][0]["format"] = "heatmap"
    panel["options"] = {
        "calculate": False, "yAxis": {"unit": "s"}, "color": {"mode": "scheme", "scheme": "Oranges"},
        "tooltip": {"show": True, "yHistogram": False}, "legend": {"show": True},
    }  # fmt: skip
    return panel


def _panel(
    kind: str, title: str, series: list[tuple[str, str]], unit: str, text: str, width: int
) -> Panel:
    targets = [
        {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
        for i, (expr, legend) in enumerate(series)
    ]
    return {
        "type": kind, "title": title, "description": text, "datasource": SOURCE, "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []}, "gridPos": {"w": width},
    }  # fmt: skip


def _steps(bounds: tuple[float, ...], down: bool) -> dict[str, Any]:
    colours = {0: (GOOD,), 1: (GOOD, BAD), 2: (GOOD, WARN, BAD)}[len(bounds)]
    steps = zip(colours[::-1] if down else colours, (None, *bounds), strict=True)
    return {"mode": "absolute", "steps": [{"color": c, "value": bound} for c, bound in steps]}


LAG = of("afresh_lag_records")
ACCEPTED, DEAD = rate("afresh_records_accepted_total"), rate("afresh_dead_letters_total")
DEAD_SHARE = f"sum({DEAD}) / ((sum({DEAD}) + sum({ACCEPTED})) > 0)"
EMBEDDING = 'signal="embedding"'
PHASE = 'phase="serving"'
SERVING = f"sum({of('afresh_groups', PHASE)}) / (sum({of('afresh_groups')}) > 0)"
DISK_LEFT = f"{of('afresh_disk_free_bytes')} / ({of('afresh_disk_bytes')} > 0)"
MEMORY_SHARE = f"sum({of('afresh_memory_bytes')}) / (sum({of('afresh_memory_limit_bytes')}) > 0)"

ROWS: dict[str, list[Panel]] = {
    "Is it fresh?": [
        stat("Freshness p50", quantile(0.5, "afresh_freshness_seconds"), "s",
             "From a record's production to its entity's vector in Redis.", 1, 10),
        stat("Freshness p99", quantile(0.99, "afresh_freshness_seconds"), "s",
             "One record in a hundred takes longer.", 5, 60),
        stat("Groups that serve", SERVING, "percentunit",
             "Of all partition groups. The others start, replay, have no release yet, or wait for Redis.",
             0.5, 1, down=True),
        stat("Kafka answers", of("afresh_source_up"), "bool_yes_no", "afresh_source_up.", 1, down=True),
        stat("Redis answers", of("afresh_sink_up"), "bool_yes_no", "afresh_sink_up.", 1, down=True),
        stat("Vectors owed", of("afresh_entities_owed"), "short",
             "Entities whose vector in Redis is still to be written: after a release, and while Redis is down."),
        lines("Freshness", [(quantile(q, "afresh_freshness_seconds"), f"p{100 * q:.0f}") for q in (0.5, 0.9, 0.99)],
              "s", "Of records that were written while serving; a backlog shows too.", 5, 60),
        heatmap("Freshness, all of it", "afresh_freshness_seconds", "How many records took how long."),
        stacked("Groups by phase", [(per("phase", of("afresh_groups")), "{{phase}}")], "short",
                "paused: Redis is down. waiting: no release yet. starting, replaying: after a start."),
    ],
    "Is it keeping up?": [
        lines("Lag", [(LAG, "records")], "short", "Records in Kafka that are not yet in the state."),
        lines("Time to catch up", [(f"{LAG} / ({ACCEPTED} > 0)", "at today's pace")], "s",
              "Lag by the rate of the moment. New records come meanwhile: it has to fall.", 60, 600),
        lines("Records", [(ACCEPTED, "accepted"), (rate("afresh_windows_encoded_total"), "encoded anew"),
                          (rate("afresh_records_stepped_total"), "stepped"),
                          (rate("afresh_vectors_written_total"), "vectors written"),
                          (rate("afresh_duplicates_total"), "duplicates")], "cps", "Each second."),
        lines("Dead letters", [(per("error", DEAD) + " > 0", "{{error}}")], "cps",
              "Records that cannot be used, by reason. They are in the dead-letter topic."),
        lines("Pauses", [(quantile(0.99, f"afresh_{x}_pause_seconds"), f"p99 {x}") for x in ("swap", "snapshot")], "s",
              "How long the stream waited for a new release, and for a slab of a snapshot."),
        lines("Held back", [(of("afresh_partitions_held_back"), "partitions"),
                            (rate("afresh_writes_refused_total"), "writes refused each second")], "short",
              "Partitions that wait for slower ones while catching up; writes that Redis refused as old."),
    ],
    "Is it learning?": [
        stat("Effective rank", of("afresh_effective_rank"), "short",
             "Dimensions in real use (RankMe). Near 1: collapse.", 2, 4, down=True),
        stat("Updates", of("afresh_updates_total"), "short", "Since the stream began."),
        lines("Loss", [(of("afresh_loss"), "training"), (of("afresh_held_out_loss"), "held out")], "short",
              "Held out: entities never trained on. A gap that grows: it learns by heart.", width=16),
        lines("Loss by objective", [(of("afresh_objective_loss"), "{{objective}}")], "short", "Unweighted."),
        lines("Updates each second", [(rate("afresh_updates_total"), "made"),
                                      (rate("afresh_updates_skipped_total"), "skipped: {{reason}}")], "cps",
              "non_finite: a loss or gradient that is no number. stale: learnt before a restart."),
        lines("Effective rank", [(of("afresh_effective_rank"), "dimensions")], "short",
              "It falls when the representation collapses.", 2, 4, down=True),
        lines("Uniformity", [(of("afresh_uniformity"), "log potential")], "short",
              "Log mean Gaussian potential of pairs: near 0 means that all vectors are alike."),
        lines("Dimensions", [(of("afresh_lidar"), "LiDAR"), (of("afresh_modes"), "modes learned"),
                             (of("afresh_coding_rate"), "coding rate")], "short",
              "LiDAR: those that tell entities apart by more than their views differ. Modes: see metrics."),
        lines("Alignment", [(of("afresh_alignment"), "squared distance of views")], "short",
              "Of two views of the same held-out window; beside uniformity, for both at once are what is wanted."),
        lines("Invariance", [(of("afresh_invariance"), "{{transformation}}")], "percentunit",
              "Cosine of a window's vector with the transformed window's: 100% is ignored, low is what it goes by."),
        lines("Neighbours that stay", [(of("afresh_neighbour_stability"), "with the snapshot before")], "percentunit",
              "Of a held-out entity's ten neighbours: those that it had in the snapshot before.", 0.2, 0.5, down=True),
        lines("Challenger", [(of("afresh_challenger_updates"), "updates of a second learner"),
                             (f"increase({of('afresh_challengers_total')}[1d])", "{{outcome}} in a day")], "short",
              "It begins where units are dormant, and takes the first one's place if its release passes.", width=12),
        lines("Dormant units", [(of("afresh_dormant_units"), "{{layer}}")], "percentunit",
              "Share of units that hardly answer to anything: what sleeps does not learn.", 0.3, 0.5),
        lines("Weights", [(of("afresh_weight_norm"), "norm"),
                          (f"1000 * {of('afresh_update_ratio')}", "moved by an update, in thousandths")], "short",
              "A norm that grows without end, with updates ever smaller beside it, is lost plasticity."),
        lines("Gradient", [(of("afresh_gradient_norm"), "norm before clipping")], "short", "Of the last update."),
        lines("Labels foretold", [(of("afresh_probe_accuracy"), "{{probe}}"),
                                  (of("afresh_probe_average_precision"), "average precision")], "percentunit",
              "Of the newest 1,000 labels, before they were told; majority always says the most frequent one."),
        lines("Labels", [(rate("afresh_labels_total"), "{{result}} each second"),
                         (of("afresh_labels_known"), "known")], "short",
              "taken, of an entity without a vector, or bad; those are dead letters of their topic."),
        lines("Training windows", [(rate("afresh_windows_received_total"), "received"),
                                   (rate("afresh_windows_not_sampled_total"), "not handed over"),
                                   (rate("afresh_sequences_learnt_total"), "learnt from")], "cps",
              "Not handed over: the learner was full or gone; embeddings go on."),
    ],
    "Has the world changed?": [
        lines("Embeddings against their reference", [
            (of("afresh_drift_embedding"), "over its threshold"),
            (f"increase({of('afresh_drift_alarms_total', EMBEDDING)}[5m])", "alarms in five minutes")], "short",
              "Maximum mean discrepancy; above 1 is an alarm, one in 500 batches of 64 without a change.", 1.0),
        lines("Alarms", [(f"increase({of('afresh_drift_alarms_total')}[1h])", "{{signal}}")], "short",
              "In the last hour. Loss, gradient and freshness: where they rose; rate: where it changed (ADWIN)."),
        lines("A second opinion", [(of("afresh_classifier_accuracy"), "classifier's accuracy"),
                                   (of("afresh_concept_change"), "largest change of a concept's share")], "percentunit",
              "A classifier that tells what came lately from the reference; 50% is chance. The page says by what.",
              0.6, 0.7),
        lines("Ageing", [(of("afresh_retrieval"), "found now"), (of("afresh_ageing"), "lost since its release")],
              "percentunit", "Held-out entities that the served release finds by their earlier part.", 0.1, 0.2),
        lines("Fields against their reference", [(of("afresh_drift_psi"), "{{field}}")], "short",
              "Population stability index: 0.1 is worth a look, 0.25 a shift. afresh reference takes now for normal.",
              0.1, 0.25),
        lines("Shape of numbers", [(of("afresh_drift_ks"), "{{field}}")], "percentunit",
              "Largest difference of a number's distribution from its reference's."),
        lines("Missing and new", [(of("afresh_drift_missing"), "{{field}}: more missing"),
                                  (of("afresh_drift_new_categories"), "{{field}}: new values")], "percentunit",
              "Missing: by how much its share has grown. New: values that the reference does not know."),
        lines("Reactions", [(f"increase({of('afresh_reactions_total')}[5m])", "{{reaction}}"),
                            (of("afresh_learning_paused"), "learning is paused")], "short",
              "What the daemon did by itself after an alarm: [reactions] in the settings."),
        lines("Held-out loss against its day", [
            (f"{of('afresh_held_out_loss')} - avg_over_time({of('afresh_held_out_loss')}[1d])", "difference")], "short",
              "Entities never trained on: it rises when the stream is no longer what was learnt from."),
        lines("Late and too old", [
            (f"{rate('afresh_records_late_total')} / ({ACCEPTED} > 0)", "late"),
            (f"{rate('afresh_records_too_old_total')} / ({ACCEPTED} > 0)", "too old")], "percentunit",
              "Share of records placed behind newer ones, and of those older than the ring."),
        lines("Share of dead letters", [(DEAD_SHARE, "of all records")], "percentunit",
              "A producer that changed its format shows here first.", 0.01, 0.1),
        lines("Entities", [(of("afresh_entities"), "in the state")], "short",
              "New ones come; past the cap old ones go.", width=12),
        lines("Entities that go", [(rate("afresh_entities_evicted_total"), "evicted"),
                                   (rate("afresh_entities_deleted_total"), "deleted")], "cps",
              "Evicted: the state is at its cap, and a smaller share of the world is known.", width=12),
    ],
    "Releases": [
        stat("Release", of("afresh_release"), "short", "Number of the current one; 0: none yet.", 1, down=True),
        stat("Age", of("afresh_release_age_seconds"), "s", "Of the current release; -1: none yet."),
        stat("Generation", of("afresh_generation"), "short", "Vectors of one generation may be compared."),
        stat("Refused in a day", f"sum(increase({of('afresh_releases_refused_total')}[1d]))", "short",
             "Releases that a check refused: the one before is served.", 1),
        stat("Export", of("afresh_export_seconds"), "s", "How long the last one took."),
        stat("Held", of("afresh_releases_held"), "bool_yes_no",
             "After a rollback no release comes by itself: afresh release ends that.", 1),
        lines("Gates", [(of("afresh_gate_value", 'gate!="parity"'), "{{gate}}"),
                        (of("afresh_gate_threshold", 'gate!="parity"'), "{{gate}}: needed")], "short",
              "Of the last release that was tried. Each needs its threshold at least.", width=12),
        lines("Parity", [(of("afresh_gate_value", 'gate="parity"'), "difference"),
                         (of("afresh_gate_threshold", 'gate="parity"'), "at most")], "sci",
              "Largest difference between ONNX Runtime and PyTorch.", width=12,
              scaleDistribution={"type": "log", "log": 10}),
        lines("Overlap with the release before", [(of("afresh_overlap_cosine"), "cosine"),
                                                  (of("afresh_overlap_neighbours"), "common neighbours")],
              "percentunit", "On held-out entities. Low: readers that mix releases compare what is not alike.",
              0.5, 0.8, down=True, width=12),
        lines("Published and refused", [(f"increase({of('afresh_releases_total')}[1h])", "published"),
                                        (f"increase({of('afresh_releases_refused_total')}[1h])", "refused: {{check}}")],
              "short", "In the last hour.", width=12),
        lines("Releases in use", [(of("afresh_release"), "current"), (of("afresh_oldest_release"), "oldest in use")],
              "short", "Of the oldest some entity's state was made; the next release waits for it.", width=12),
        lines("Another generation", [(of("afresh_next_release"), "release"),
                                     (of("afresh_entities_to_fill"), "entities without a vector of it"),
                                     (of("afresh_records_to_read_again"), "records to read again")], "short",
              "Filled beside the served one; readers go over once every entity has a vector. 0: none is.", width=12),
    ],
    "Resources": [
        stacked("Memory", [(of("afresh_memory_bytes"), "{{process}}")], "bytes", "Resident, by process."),
        lines("Share of memory", [(MEMORY_SHARE, "of the machine or container")], "percentunit",
              "Past 100% the kernel ends a process.", 0.8, 0.9),
        stacked("CPU", [(rate("afresh_cpu_seconds_total"), "{{process}}")], "short", "Cores in use, by process."),
        lines("State", [(of("afresh_state_bytes"), "bytes")], "bytes",
              "Of the entities' state; state.max_memory_mb is its cap."),
        lines("Disk left", [(DISK_LEFT, "of the state's filesystem")], "percentunit",
              "Without room snapshots fail and the lease cannot be renewed.", 0.03, 0.1, down=True),
        lines("Age of snapshots", [(of("afresh_snapshot_age_seconds"), "groups"),
                                   (of("afresh_learner_snapshot_age_seconds"), "learner")], "s",
              "What a restart reads again from Kafka."),
        lines("Snapshots each second", [(rate("afresh_snapshots_total"), "written"),
                                        (rate("afresh_snapshot_failures_total"), "failed: groups"),
                                        (rate("afresh_learner_snapshot_failures_total"), "failed: learner")], "cps",
              "A failed one leaves the one before."),
        lines("Replay", [(of("afresh_replay_windows"), "windows"),
                         (of("afresh_held_out_entities"), "held-out entities")],
              "short", "What the learner holds."),
        lines("Restarts", [(f"increase({of('afresh_restarts_total')}[1h])", "{{process}}"),
                           (f"changes({of('afresh_epoch')}[1h])", "daemon")], "short", "In the last hour."),
    ],
}  # fmt: skip


def placed() -> list[Panel]:
    """All panels, each where it belongs on the grid."""
    panels: list[Panel] = []
    y = 0
    for title, row in ROWS.items():
        where = {"h": 1, "w": WIDTH, "x": 0, "y": y}
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": where}
        )
        y += 1
        for line in _in_lines(row):
            height = LOW if all(panel["type"] == "stat" for panel in line) else HEIGHT
            x = 0
            for panel in line:
                width = panel["gridPos"]["w"]
                panels.append(panel | {"gridPos": {"h": height, "w": width, "x": x, "y": y}})
                x += width
            y += height
    return [panel | {"id": number} for number, panel in enumerate(panels, 1)]


def _in_lines(row: list[Panel]) -> list[list[Panel]]:
    found: list[list[Panel]] = [[]]
    for panel in row:
        if sum(p["gridPos"]["w"] for p in [*found[-1], panel]) > WIDTH:
            found.append([])
        found[-1].append(panel)
    return found


def dashboard() -> dict[str, Any]:
    return {
        "uid": "afresh", "title": "afresh", "tags": ["afresh"], "editable": True, "schemaVersion": 39,
        "version": 1, "refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "timezone": "browser",
        "graphTooltip": 1,
        "annotations": {"list": [{
            "name": "Releases", "enable": True, "datasource": SOURCE, "iconColor": "blue",
            "expr": f"changes({of('afresh_release')}[1m]) > 0", "titleFormat": "a new release",
        }]},
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
            {"name": "stream", "type": "query", "label": "Stream", "datasource": SOURCE, "refresh": 2, "sort": 1,
             "query": {"query": "label_values(afresh_groups, stream)", "refId": "stream"}},
        ]},
        "panels": placed(),
    }  # fmt: skip


def expressions(found: Any) -> list[str]:
    """Every PromQL expression in a dashboard, as Prometheus may be asked it."""
    match found:
        case dict():
            mine = [found["expr"]] if "expr" in found else []
            deeper = [e for value in found.values() for e in expressions(value)]
            given = [e.replace("$__rate_interval", "5m").replace("$stream", "s") for e in mine]
            return given + deeper
        case list():
            return [e for value in found for e in expressions(value)]
    return []


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"

"""Settings that cannot work are refused at the start, by the path of the key and with what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from daemon.settings import Settings, check, load, parse
from learning.config import (
    GraphClConfig,
    GraphIsomorphismConfig,
    NextInteractionConfig,
    TemporalAttentionConfig,
)
from schemas.errors import SettingsError

DEMO = Path(__file__).parent.parent.parent / "deploy" / "demo.toml"
MINIMAL = """
name = "s"
state_dir = "state"

[stream]
entity = "who"
time = "at"

[[stream.field]]
name = "amount"
type = "number"

[source]
brokers = "localhost:9092"
topics = ["t"]
"""


def refused(text: str) -> str:
    with pytest.raises(SettingsError) as error:
        check(parse(text, "afresh.toml"))
    return str(error.value)


def test_the_least_that_must_be_said_is_enough() -> None:
    settings = parse(MINIMAL)
    check(settings)
    assert settings.folder == Path("state/s")
    assert settings.learner.enabled
    assert settings.redis.url == "redis://127.0.0.1:6379/0"
    assert settings.http.host == "127.0.0.1", "bound to loopback unless asked"


def test_the_demos_settings_are_well(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "NAME": "flights", "TOPIC": "flights", "FOLDER": "folder",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"AFRESH_DEMO_{name}", value)
    monkeypatch.setenv("AFRESH_KAFKA", "localhost:9092")
    monkeypatch.setenv("AFRESH_REDIS", "redis://localhost:6379")
    settings = load(DEMO)
    check(settings)
    assert settings.source.hosts == ["localhost:9092"]


def test_what_only_a_graph_has_is_refused_elsewhere_and_what_it_needs_is_asked_for() -> None:
    events = MINIMAL + 'mirror_topic = "m"'
    assert "source.mirror_topic is for graphs" in refused(events)
    graph = MINIMAL.replace('time = "at"', 'time = "at"\nkind = "graph"\nneighbour = "whom"')
    settings = parse(graph)
    check(settings)
    assert isinstance(settings.encoder, TemporalAttentionConfig)
    assert isinstance(settings.learner.objective[0], NextInteractionConfig)
    assert 'whose encoder is "temporal_attention"' in refused(graph + "[encoder]\nname = 'gru'")
    coles = "[[learner.objective]]\nname = 'coles'"
    assert 'which learns by "next_interaction", "grace"' in refused(graph + coles)
    assert 'which learns by "coles"' in refused(MINIMAL + coles.replace("coles", "grace"))
    mae = coles.replace("coles", "graphmae")
    assert "there is no [[stream.node]]" in refused(graph + mae)
    for name in ("vicreg", "grace", "bandana", "node2vec"):
        check(parse(graph + coles.replace("coles", name)))
    node = "\n[[stream.node]]\nname = 'size'\ntype = 'number'\n"
    noded = graph.replace('kind = "graph"', 'kind = "graph"\nop = "op"')
    check(parse(noded + node + mae))
    attention = "[encoder]\nname = 'temporal_attention'"
    assert 'whose encoder is "gru"' in refused(MINIMAL + attention)
    assert "murmur2" in refused(graph + "check_partition = false")
    assert "'t', which is the mirror" in refused(graph + 'mirror_topic = "t"')
    assert "no topic's name" in refused(graph + 'mirror_topic = "a b"')


def test_whole_graphs_have_an_encoder_and_an_objective_of_their_own() -> None:
    graph = 'time = "at"\nkind = "graph"\nunit = "graph"\nsource = "from"\nneighbour = "to"'
    whole = MINIMAL.replace('time = "at"', graph)
    settings = parse(whole)
    check(settings)
    assert isinstance(settings.encoder, GraphIsomorphismConfig)
    assert isinstance(settings.learner.objective[0], GraphClConfig)
    check(parse(whole + "check_partition = false"))  # each graph's edges are in one partition
    assert 'whose encoder is "graph_isomorphism"' in refused(whole + "[encoder]\nname = 'gru'")
    for other in ("coles", "next_interaction"):
        text = f"[[learner.objective]]\nname = '{other}'"
        assert 'unit "graph", which learns by "graphcl"' in refused(whole + text)
    node = whole.replace('unit = "graph"\nsource = "from"\n', "")
    check(parse(node))
    text = "[[learner.objective]]\nname = 'graphcl'"
    assert 'unit "node", which learns by "next_interaction"' in refused(node + text)
    assert 'whose encoder is "gru" or "linear_recurrence"' in refused(
        MINIMAL + "[encoder]\nname = 'graph_isomorphism'"
    )
    assert 'stream.unit is "graph". Remove it' in refused(whole + 'mirror_topic = "m"')
    assert "edge_drop is 1" in refused(
        whole + "[[learner.objective]]\nname = 'graphcl'\nedge_drop = 1"
    )
    assert "stream.unit: Invalid enum value 'edge'" in refused(
        whole.replace('unit = "graph"', 'unit = "edge"')
    )


INSIDE = {
    "unknown table": ("[kafka]\na = 1", "kafka: there is no such key. Remove it"),
    "unknown key": ("[shard]\nshard = 2", "shard.shard: there is no such key. Remove it"),
    "unknown nested": ("[source.dlq]\nbytes = 2", "source.dlq.bytes: there is no such key"),
    "wrong type": ("[http]\nport = '1'", "http.port: Expected `int`, got `str`. Change it."),
    "out of range": ("[http]\nport = 70000", "http.port: Expected `int` <= 65535. Change it."),
    "bad choice": ("[decode]\nformat = 'xml'", "decode.format: Invalid enum value 'xml'"),
    "bad encoder": ("[encoder]\nname = 'lstm'", "encoder.name: Invalid value 'lstm'"),
    "bad objective": ("[[learner.objective]]\nname = 'x'", "learner.objective[0].name: Invalid"),
    "odd window": ("[encoder]\nname = 'gru'\nwindow = 63", "encoder.window is 63; it must be even"),
    "no objective": ("[learner]\nobjective = []", "learner.objective is empty"),
    "objective twice": (
        "[[learner.objective]]\nname='coles'\n[[learner.objective]]\nname='coles'",
        "learner.objective is coles twice; name each objective once",
    ),
    "no schema": ("[decode]\nformat = 'avro'", "Name the schema's local file in decode.avro_schema"),
    "lost schema": (
        "[decode]\nformat = 'avro'\navro_schema = '/no/such'",
        "decode.avro_schema: /no/such is no Avro schema",
    ),
    "too small": ("[state]\nmax_entities = 3", "state.max_entities 3: room for 3 entities"),
    "password in url": (
        "[redis]\nurl = 'redis://:secret@h:1/0'",
        "name it in redis.password_env or redis.password_file",
    ),
    "password nowhere": ("[redis]\npassword_env = 'NOT_SET'", "redis.password_env: the environment"),
    "two passwords": (
        "[redis]\npassword_env = 'A'\npassword_file = 'b'",
        "redis.password_env and redis.password_file: set one",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("more", "text"), INSIDE.values(), ids=INSIDE)
def test_what_is_wrong_is_named(more: str, text: str) -> None:
    found = refused(MINIMAL + more)
    assert text in found
    assert "secret" not in found


REPLACED = {
    "not TOML": ('name = "s"', "name = s", "afresh.toml is not TOML"),
    "no name": ('name = "s"\n', "", "afresh.toml: name is missing. Set it."),
    "no entity": ('entity = "who"\n', "", "stream.entity is missing: name its path in a record."),
    "bad name": ('name = "s"', 'name = ".."', "name: Expected `str` matching regex"),
    "field type": ('"number"', '"float"', "stream.field[0].type: Invalid enum value 'float'"),
    "no field": (
        '[[stream.field]]\nname = "amount"\ntype = "number"', "field = []", "stream.field is empty",
    ),
    "field twice": (
        "[source]", '[[stream.field]]\nname="amount"\ntype="flag"\n[source]', "'amount' is there twice",
    ),
    "bad default": (
        'type = "number"', 'type = "number"\ndefault = "x"', "stream.field 'amount': the default 'x'",
    ),
    "object and value": (
        'type = "number"', 'type = "number"\npath = "who.x"', "an object and a value at once",
    ),
    "never a time": ('time = "at"', 'time = "amount"\ntime_unit = "iso"', "'amount' is read as number"),
    "broker": ("localhost:9092", "localhost", "source.brokers has 'localhost'; needed is host:port"),
    "no topic": ('["t"]', "[]", "source.topics is empty; name at least one topic"),
    "own dead letters": ('["t"]', '["t", "t.dlq"]', "its own dead letters; remove the latter"),
    "start": ('["t"]', '["t"]\nstart = "noon"', "source.start is 'noon'"),
    "start zone": ('["t"]', '["t"]\nstart = "2024-01-31"', "without a time zone"),
    "SASL": ('["t"]', '["t"]\nsecurity_protocol = "SASL_SSL"', "source.sasl_mechanism"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "text"), REPLACED.values(), ids=REPLACED)
def test_what_is_missing_or_misshaped_is_named(old: str, new: str, text: str) -> None:
    assert old in MINIMAL
    assert text in refused(MINIMAL.replace(old, new))


def test_references_are_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    text = MINIMAL.replace('"localhost:9092"', '["${HOST}:1", "${HOST}2:2"]')
    assert "source.brokers[0] names ${HOST}" in refused(text)
    monkeypatch.setenv("HOST", "kafka")
    assert parse(text).source.hosts == ["kafka:1", "kafka2:2"]
    monkeypatch.setenv("HOST", "${PATH}")
    with pytest.raises(SettingsError, match=r"source\.brokers"):
        parse(text)  # what comes from the environment is not looked up again


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Name a TOML file of settings"):
        load(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"bytes\.toml cannot be read"):
        load(tmp_path / "bytes.toml")


def test_neither_a_command_nor_a_shard_loads_torch() -> None:
    """It takes seconds and 200 MB: the learner's and the publisher's processes alone have it."""
    code = """
import sys
import actors.processes, actors.spawn, daemon.app, daemon.cli, daemon.reading, daemon.settings
print([name for name in ("torch", "onnx", "pandas") if name in sys.modules])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_settings_are_frozen() -> None:
    settings: Settings = parse(MINIMAL)
    with pytest.raises(AttributeError):
        settings.name = "other"  # type: ignore[misc]


IMAGES = MINIMAL.replace('entity = "who"\ntime = "at"', 'kind = "image"').replace(
    '[[stream.field]]\nname = "amount"\ntype = "number"\n', ""
)


def test_images_have_defaults_of_their_own() -> None:
    learner = parse(IMAGES).learner
    assert (learner.updates_per_record, learner.replay.per_entity) == (0.06, 256)
    assert learner.replay.fresh == 0.5
    said = parse(IMAGES + "[learner]\nupdates_per_record = 1\nreplay = { max_bytes = 65536 }\n")
    assert (said.learner.updates_per_record, said.learner.replay.max_bytes) == (1.0, 65536)
    assert said.learner.replay.per_entity == 256


def test_what_is_for_images_is_refused_elsewhere() -> None:
    assert "[learner.views] is for images" in refused(MINIMAL + "[learner.views]\nflip = 0.0\n")
    assert "learner.replay.policy" in refused(MINIMAL + '[learner.replay]\npolicy = "minred"\n')
    check(parse(IMAGES + '[learner.replay]\npolicy = "minred"\n[learner.views]\nflip = 0.0\n'))

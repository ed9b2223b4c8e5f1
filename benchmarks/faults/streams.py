"""What the service that faults are done to reads: settings and records of each kind."""

import io
import random
from typing import Any, Literal

import msgspec

Kind = Literal["events", "graph", "whole", "images"]
"""Events; edges from their entity to another one, or what is said of it; edges of their entity, a graph of a few
nodes; images of their entity."""
START = 1_600_000_000
SETTINGS = """
name = "{topic}"
state_dir = "{folder}/state"
{stream}
[source]
brokers = "{kafka}"
topics = ["{topic}"]
[redis]
url = "{redis}"
[state]
max_memory_mb = 64
[shard]
shards = {shards}
snapshot_every_s = 1
[encoder]
{encoder}
dim = 8
[learner]
min_entities = 16
batch_entities = 16
held_out_share = 0.0
updates_per_record = {updates}
[[learner.objective]]
{objective}
[release]
first_s = 1
every_s = 8
every_updates = 5
[service]
lease_s = 4
hang_s = 12
steady_s = 2
[http]
port = 0
"""
STREAM = """
[stream]
{kind}
entity = "who"
time = "at"
time_unit = "s"
[[stream.field]]
name = "what"
type = "category"
[[stream.field]]
name = "amount"
type = "number"
[[stream.field]]
name = "id"
type = "number"
"""
EVENTS = {
    "stream": STREAM.replace("{kind}", ""),
    "encoder": 'name = "gru"\ncategory_dim = 4\nbucket_bits = 6\nhidden = 8\nwindow = 16',
    "objective": 'name = "coles"',
    "updates": "0.2",
}
GRAPH = {
    "stream": STREAM.replace("{kind}", 'kind = "graph"\nneighbour = "whom"\nop = "op"')
    + '[[stream.node]]\nname = "size"\ntype = "number"',
    "encoder": 'name = "temporal_attention"\nhidden = 8\nwindow = 16',
    "objective": 'name = "next_interaction"',
    "updates": "0.2",
}
WHOLE = {
    "stream": STREAM.replace(
        "{kind}", 'kind = "graph"\nunit = "graph"\nsource = "near"\nneighbour = "far"\nop = "op"'
    ),
    "encoder": 'name = "graph_isomorphism"\nhidden = 8\nwindow = 16',
    "objective": 'name = "graphcl"',
    "updates": "0.2",
}
IMAGES = {
    "stream": '[stream]\nkind = "image"\ntime_unit = "s"\n[stream.image]\nside = 8',
    "encoder": 'name = "timm"\nsize = 8\nwindow = 3',
    "objective": 'name = "vicreg"',
    "updates": "0.02",
}
KINDS: dict[Kind, dict[str, str]] = {
    "events": EVENTS,
    "graph": GRAPH,
    "whole": WHOLE,
    "images": IMAGES,
}


def settings(kind: Kind, **more: object) -> str:
    return SETTINGS.format(**KINDS[kind], **more)


def value(kind: Kind, number: int, who: str, entities: int, rng: random.Random) -> bytes:
    """The value of the record so numbered, of this entity."""
    if kind == "images":
        return image(rng)
    value: dict[str, Any] = {"who": who, "at": START + 7 * number, "id": number}
    value["what"] = f"c{rng.randrange(6)}"
    if kind == "graph" and rng.random() < 0.1:
        value |= {"op": "node", "size": rng.gauss(0, 2)}
    elif kind == "graph":
        value["whom"] = f"e{rng.randrange(entities)}"
    if kind == "whole":
        value["near"], value["far"] = rng.sample("abcdef", 2)
        if rng.random() < 0.2:
            value["op"] = "remove"
    if rng.random() < 0.9:
        value["amount"] = rng.gauss(0, 50)
    return msgspec.json.encode(value)


def image(rng: random.Random) -> bytes:
    """A PNG of four coloured fields; hardly two are the same."""
    from PIL import Image

    file = io.BytesIO()
    small = Image.frombytes("RGB", (2, 2), rng.randbytes(12))
    small.resize((12, 10), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def headers(kind: Kind, number: int) -> list[tuple[str, bytes]]:
    """Of an image its time; other records have it in them."""
    return [("time", b"%d" % (START + 7 * number))] if kind == "images" else []

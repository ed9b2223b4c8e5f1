"""What hostile bytes can make us do is bounded: compressed batches, graphs that name files, open folders.

The other limits are tested where they are: messages and names in tests/actors/test_decode*.py, arrow messages that
expand in tests/actors/test_decode_formats.py, dead letters in tests/actors/test_dead_letters.py."""

import gzip
import os
import re
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import kafka as kafka_python
import lz4.frame
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import snappy
import zstandard
from kafka.codec import snappy_encode
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from actors import graphs, kafka_expand, lease
from actors.encode import session
from actors.private import private_folder
from actors.source import KafkaSource, SourceConfig
from learning import export
from learning.inline import check_inline
from schemas.errors import ReleaseError, SettingsError, SourceError
from tests.helpers import client_threads, eventually

Topics = Callable[..., str]
CODECS = ["gzip", "lz4", "snappy", "zstd"]

# -- compressed batches of records ----------------------------------------------------------------


@pytest.fixture(autouse=True)
def unbounded_again() -> Iterator[None]:
    yield
    kafka_expand.expand_at_most(256 << 20)


@pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")
@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_that_expands_too_far_is_refused_in_bounded_memory(
    codec: str, kafka: str, topics: Topics
) -> None:
    topic = topics()
    options = {"bootstrap_servers": kafka, "compression_type": codec, "max_request_size": 64 << 20}
    with closing(kafka_python.KafkaProducer(**options)) as producer:
        producer.send(topic, b"fine", partition=0).get(20)
        producer.send(topic, bytes(24 << 20), partition=0).get(20)
    for limit, says in ((8 << 20, "source.max_expanded_bytes is 8388608"), (64 << 20, "")):
        config = SourceConfig(kafka, (topic,), max_expanded_bytes=limit)
        with closing(KafkaSource(config, "test", 1)) as source:
            source.start(0, None)
            assert sizes(source, 1) == [4]
            if says:
                with pytest.raises(SourceError, match=says):
                    sizes(source, 1)
            else:
                assert sizes(source, 1) == [24 << 20]
    eventually(lambda: not client_threads(), 15.0, "threads left behind")


def test_one_answer_of_a_broker_is_bounded(kafka: str, topics: Topics) -> None:
    topic, size = topics(), 16 << 10
    with closing(kafka_python.KafkaProducer(bootstrap_servers=kafka, batch_size=size)) as producer:
        for _ in range(40):
            producer.send(topic, bytes(size), partition=0).get(20)
    bounds = {"max_records_bytes": 1 << 16, "max_partition_bytes": 1 << 16}
    with closing(KafkaSource(SourceConfig(kafka, (topic,), **bounds), "test", 1)) as source:  # type: ignore[arg-type]
        source.start(0, None)
        first = eventually(lambda: source.poll(1000, 0.05), 20)
        assert len(first[0].values) <= 5
        assert len(sizes(source, 40 - len(first[0].values), 1000)) == 40 - len(first[0].values)


def test_every_limit_of_the_page_names_settings_and_tests_that_are_there() -> None:
    root = Path(__file__).parents[2]
    rows = (root / "docs" / "security.md").read_text().split("## Limits\n")[1]
    known = (root / "docs" / "operations.md").read_text()
    names = re.findall(r"`([^`\n]+)`", rows)
    paths = [root / name for name in names if name.startswith("tests/")]
    keys = [name for name in names if "." in name and not name.startswith("tests/")]
    assert len(paths) > 10 and len(keys) > 10
    assert not [path for path in paths if not path.exists()]
    assert not [key for key in keys if f"| `{key}` |" not in known and key != "message.max.bytes"]


def sizes(source: KafkaSource, count: int, at_once: int = 1) -> list[int]:
    found: list[int] = []

    def more() -> bool:
        for batch in source.poll(at_once, 0.05):
            found.extend(len(value or b"") for value in batch.values)
        return len(found) >= count

    eventually(more, 20)
    return found


def compressed(codec: str, data: bytes) -> bytes:
    many = {
        "gzip": gzip.compress,
        "lz4": lz4.frame.compress,
        "snappy": snappy_encode,
        "zstd": zstandard.ZstdCompressor().compress,
    }
    return bytes(many[codec](data))


@pytest.mark.parametrize("codec", [*CODECS, "raw snappy"])
def test_a_bomb_is_never_in_memory(codec: str) -> None:
    kafka_expand.expand_at_most(1 << 20)
    decode = getattr(kafka_expand.default_records, f"{codec.removeprefix('raw ')}_decode")
    pack = snappy.compress if codec == "raw snappy" else lambda data: compressed(codec, data)
    for size in (0, 1, 1 << 20):
        data = np.random.default_rng(1).bytes(size // 2) + bytes(size - size // 2)
        assert bytes(decode(pack(data))) == data
    assert bytes(decode(pack(b"a" * 9))) == b"a" * 9
    part = pack(bytes(16 << 20))
    head = 16 if codec == "snappy" else 0  # xerial's header
    bomb = part[:head] + part[head:] * (1 if codec == "raw snappy" else 64)  # a gigabyte
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(kafka_expand.TooLarge, match=r"compressed bytes of records are"):
        decode(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB


@pytest.mark.parametrize("codec", ["gzip", "lz4"])
def test_what_follows_the_first_part_is_read_and_a_cut_one_refused(codec: str) -> None:
    kafka_expand.expand_at_most(1 << 20)
    decode = getattr(kafka_expand.default_records, f"{codec}_decode")
    part = compressed(codec, b"abc" * 100)
    assert decode(part + part) == b"abc" * 200
    with pytest.raises(Exception, match=r"cut short"):
        decode(part[:-6])


# -- graphs that name files -----------------------------------------------------------------------


def model(nested: bool = False) -> onnx.ModelProto:
    """y = x + w, with w in the graph, or in a branch inside it."""
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    if not nested:
        graph = helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight]
        )
    else:
        inner = helper.make_node("Constant", [], ["z"], value=weight)
        z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])
        branch = helper.make_graph([inner], "b", [], [z])
        flag = helper.make_tensor("flag", TensorProto.BOOL, [], [True])
        nodes = [
            helper.make_node("If", ["flag"], ["t"], then_branch=branch, else_branch=branch),
            helper.make_node("Add", ["x", "t"], ["y"]),
        ]
        graph = helper.make_graph(nodes, "g", [x], [y], [flag])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    return made


def tensor(made: onnx.ModelProto, nested: bool) -> TensorProto:
    if not nested:
        return made.graph.initializer[0]
    return made.graph.node[0].attribute[0].g.node[0].attribute[0].t


USES: dict[str, Callable[[bytes], object]] = {
    "serving": lambda data: session(data, 1),
    "interface": graphs.interface,
    "parity": export.session,
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("use", USES)
def test_a_graph_with_weights_in_another_file_is_refused_before_a_session_is_made(
    use: str, nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where ONNX Runtime would look
    made = model(nested)
    USES[use](made.SerializeToString())
    part = tensor(made, nested)
    Path("w.bin").write_bytes(part.raw_data)
    set_external_data(part, "w.bin")
    part.ClearField("raw_data")
    assert ort.InferenceSession is not None
    with pytest.raises(ReleaseError, match="a tensor in another file, which is never opened"):
        USES[use](made.SerializeToString())
    part.data_location = TensorProto.DEFAULT  # the entries alone
    with pytest.raises(ReleaseError, match="a tensor in another file"):
        USES[use](made.SerializeToString())


def test_what_is_no_onnx_model_is_refused() -> None:
    good = model().SerializeToString()
    check_inline(good)
    for bad in (good[:-3], b"\x08", b"\x3a\xff\xff\xff\xff\x0f", b"\x00\x00", b"\x0b" * 9):
        with pytest.raises(ReleaseError, match="is no ONNX model"):
            check_inline(bad)
    with pytest.raises(ReleaseError, match="ONNX Runtime's own format"):
        check_inline(b"\x18\0\0\0ORTM" + bytes(64))
    deep = b""
    for _ in range(200):  # a graph in an attribute of a node, again and again
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            deep = tag + varint(len(deep)) + deep
    with pytest.raises(ReleaseError, match="nested too deeply"):
        check_inline(b"\x3a" + varint(len(deep)) + deep)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


# -- folders --------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_state_folder_is_ours_alone_even_if_it_was_not(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "orders"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    lease.take(folder, lease_s=5, clock=lambda: 0.0, wait=lambda _: None).release()
    assert mode(folder) == 0o700


def test_a_folder_that_is_a_link_or_anothers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(SettingsError, match=r"is a link\. Remove it, or change state_dir"):
        private_folder(tmp_path / "link", "state_dir")
    if os.getuid() != 0:
        with pytest.raises(SettingsError, match="cannot be made our user's alone"):
            private_folder(Path("/usr"), "state_dir")


def test_no_code_of_ours_reads_pickle() -> None:
    root = Path(__file__).parents[2]
    pickle = re.compile(r"\bpickle\b|(?<!safetensors\.)torch\.(load|save)\(|joblib|shelve|marshal")
    parts = ("schemas", "learning", "actors", "daemon")
    files = [path for part in parts for path in (root / part).rglob("*.py")]
    code = {path.name: re.sub(r'"""(.|\n)*?"""|#.*', "", path.read_text()) for path in files}
    assert code
    assert not [name for name, text in code.items() if pickle.search(text)]

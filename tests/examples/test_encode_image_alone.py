"""A third party's vectors, from files of images and what is in Redis, are the daemon's."""

import ast
import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import redis
from PIL import Image

from actors.pixels import pixels_of
from actors.redis_client import RedisConfig
from actors.redis_sink import RedisSink
from actors.served import read_release
from actors.sink import Current
from examples import encode_image_alone as alone
from learning.config_images import TimmConfig
from schemas.published import encoder_key
from schemas.stream import ImageConfig, StreamConfig
from tests.fakes import MemorySource, Record
from tests.services import adopt, make_release, make_shard, settle

FILE = Path(alone.__file__)
STREAM = StreamConfig(kind="image", image=ImageConfig(side=16), time_unit="s")
ENCODERS = {
    "ResNet": TimmConfig(dim=8, backbone="resnet10t", size=16, width=0.25, window=3),
    "ViT": TimmConfig(dim=8, backbone="vit_tiny_patch16_224", size=16, patch=4, window=3),
}
IMAGES = 5


def picture(rng: np.random.Generator, mode: str, form: str, orientation: int = 1) -> bytes:
    """A smooth one, of whatever size."""
    width, height = rng.integers(20, 200, 2).tolist()
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 4), np.uint8), "RGBA")
    image = small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, form, exif=exif)
    return file.getvalue()


def pictures(seed: int) -> list[bytes]:
    rng = np.random.default_rng(seed)
    sorts = [
        ("RGB", "JPEG", 6),
        ("RGBA", "PNG", 1),
        ("CMYK", "JPEG", 1),
        ("L", "PNG", 8),
        ("RGB", "WEBP", 3),
    ]
    return [picture(rng, *sorts[at]) for at in rng.permutation(len(sorts)).tolist()]


@dataclass
class Served:
    stream: str
    client: redis.Redis
    url: str
    files: list[bytes]


@pytest.fixture(params=ENCODERS)
def served(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    database: redis.Redis,
    redis_server: str,
    stream: str,
) -> Iterator[Served]:
    """One entity of five images, served with the mean of the newest three."""
    encoder, files = ENCODERS[request.param], pictures(0)
    make_release(tmp_path / "releases", 1, encoder, STREAM)
    headers = [[("time", b"%d" % (1_600_000_000 + at))] for at in range(len(files))]
    source = MemorySource(
        [Record(data, b"shoe", headers=told) for data, told in zip(files, headers, strict=True)]
    )
    with closing(RedisSink(RedisConfig(url=redis_server), stream)) as sink:
        manifest, graphs = read_release(tmp_path / "releases" / "1")
        text = msgspec.json.encode(manifest).decode()
        sink.publish_release(
            1, 1, {"onnx": graphs["encode"], "sha256": manifest.encode_sha256}, text, epoch=1
        )
        sink.set_current(Current(1, 1, manifest.dim), epoch=1)
        shard = make_shard(tmp_path, source, sink, stream=STREAM, encoder=encoder)
        adopt(shard)
        settle(shard)
        yield Served(stream, database, redis_server, files)


def test_it_gets_the_daemons_vector(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert alone.compare(served.client, served.stream, "shoe", served.files) < 1e-5
    assert "release 1, 3 of 5 images" in capsys.readouterr().out
    other = [*served.files[:-1], pictures(1)[0]]
    assert alone.compare(served.client, served.stream, "shoe", other) > alone.TOLERANCE


@pytest.mark.parametrize("seed", range(6))
def test_its_pixels_are_the_daemons(seed: int) -> None:
    for data in pictures(seed):
        mine = alone.pixels_of(data, 16).reshape(-1)
        np.testing.assert_array_equal(mine, pixels_of(data, 16))


def test_it_says_what_is_missing(served: Served) -> None:
    with pytest.raises(SystemExit, match="no vector in"):
        alone.compare(served.client, served.stream, "nobody", served.files)
    with pytest.raises(SystemExit, match="2 images were given; the vector is of the newest 3"):
        alone.compare(served.client, served.stream, "shoe", served.files[:2])
    key = encoder_key(served.stream, 1)
    graph = bytearray(served.client.hget(key, "onnx") or b"")  # type: ignore[arg-type]
    graph[100] ^= 1
    served.client.hset(key, "onnx", bytes(graph))
    with pytest.raises(SystemExit, match="encode_sha256"):
        alone.compare(served.client, served.stream, "shoe", served.files)


@pytest.mark.parametrize("served", ["ResNet"], indirect=True)
def test_it_runs_as_printed(served: Served, tmp_path: Path) -> None:
    paths = [tmp_path / f"{at}.image" for at in range(IMAGES)]
    for path, data in zip(paths, served.files, strict=True):
        path.write_bytes(data)
    command = [sys.executable, str(FILE), "--redis", served.url, "--stream", served.stream]
    done = subprocess.run(
        [*command, "--entity", "shoe", *map(str, paths)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.startswith("release 1, 3 of 5 images, largest difference")


def test_it_needs_four_packages_alone() -> None:
    names = set()
    for node in ast.walk(ast.parse(FILE.read_text())):
        if isinstance(node, ast.Import):
            names |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert names - set(sys.stdlib_module_names) == {"redis", "onnxruntime", "numpy", "PIL"}

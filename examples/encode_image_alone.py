"""Computes an entity's vector from its images and compares it with the one in Redis.

Needs redis, onnxruntime, numpy and pillow, nothing of afresh; docs/contract.md says why each line
is as it is. Images are files, in order of their time, as they were produced:

    kcat -C -e -q -b localhost:9092 -t photos -o beginning -f '%s' -c 1 > first.jpg
    python examples/encode_image_alone.py --stream photos --entity shoe-17 first.jpg second.jpg
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import redis
from PIL import Image, ImageOps

Array = npt.NDArray[Any]
TOLERANCE = 1e-4


def pixels_of(data: bytes, side: int) -> Array:
    """The manifest's `pixels` in Pillow's words: uint8 [side, side, 3]. Of files that are trusted."""
    image: Any = Image.open(BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    image.draft(None, (2 * side, 2 * side))
    image.load()
    orientation = image.getexif().get(0x0112, 1)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    else:
        alpha = image.has_transparency_data
        image = image.convert("RGBA" if alpha else "L" if image.mode == "L" else "RGB")
    image = image.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


class Release:
    """A release as Redis holds it. The hash is checked before the graph is parsed."""

    def __init__(self, client: redis.Redis, stream: str, release: int) -> None:
        key = f"afresh:{stream}:encoder:{release}"
        found: Any = client.hmget(key, ["manifest", "onnx"])
        if None in found:
            raise SystemExit(f"Redis has no {key}: it is too old, or this is another Redis.")
        self.manifest: dict[str, Any] = json.loads(found[0])
        if not self.manifest.get("side"):
            raise SystemExit(f"{stream!r} is no stream of images: see examples/encode_alone.py.")
        if hashlib.sha256(found[1]).hexdigest() != self.manifest["encode_sha256"]:
            raise SystemExit(f"{key}: encode_sha256 of the manifest is not that of the graph.")
        cpu = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(found[1], providers=cpu)

    def encode(self, files: Sequence[bytes]) -> Array:
        """The vector [D] of an entity with these images, the newest last."""
        side, most = self.manifest["side"], self.manifest["window"]
        pixels = np.stack([pixels_of(data, side) for data in files[-most:]])
        vectors = self._session.run(["embedding"], {"pixels": pixels})[0]
        mean = np.asarray(vectors).mean(0)
        return np.asarray(mean / np.linalg.norm(mean))


def compare(client: redis.Redis, stream: str, entity: str, files: Sequence[bytes]) -> float:
    """Prints and returns the largest difference between Redis's vector and ours."""
    generation: Any = client.hget(f"afresh:{stream}:current", "generation")
    if generation is None:
        raise SystemExit(f"Redis has no afresh:{stream}:current: there is no release yet.")
    key = f"afresh:{stream}:g{int(generation)}:{entity}"
    served: Any = client.hmget(key, ["vector", "release", "count"])
    if served[0] is None:
        raise SystemExit(f"Redis has no vector in {key}.")
    number, count = int(served[1]), int(served[2])
    release = Release(client, stream, number)
    wanted = min(count, release.manifest["window"])
    if len(files) < wanted:
        raise SystemExit(f"{len(files)} images were given; the vector is of the newest {wanted}.")
    ours = release.encode(files)
    difference = float(np.abs(ours - np.frombuffer(served[0], "<f4")).max())
    print(f"release {number}, {wanted} of {count} images, largest difference {difference:.1e}")
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description="Compute a vector from images.")
    parser.add_argument("images", nargs="+", type=Path, help="files, the newest last")
    parser.add_argument("--stream", required=True)
    parser.add_argument("--entity", required=True)
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/0")
    given = parser.parse_args()
    client = redis.Redis.from_url(given.redis, socket_timeout=5.0)
    try:
        files = [path.read_bytes() for path in given.images]
        worst = compare(client, given.stream, given.entity, files)
    except (OSError, redis.RedisError) as why:  # a file that is not there or no image, or no Redis
        raise SystemExit(f"{type(why).__name__}: {why}") from None
    if worst > TOLERANCE:
        raise SystemExit(f"the vectors differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()

"""Images in `make bench`: training against lightly, looks, serving; memory of a GPU where there is one.

Training is of made-up images: what they show costs nothing. Backbone, batch, views and width of the expander are the
same on both sides, the runs alternate, and on a CPU its time counts, for the machine has other work."""

import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import torch

from benchmarks import cifar, image_reference
from benchmarks.apart import apart
from benchmarks.cifar import Part
from benchmarks.items import Item, at_least, shown
from benchmarks.reference import Missing
from learning.config import LearnerConfig, VicregConfig
from learning.config_images import TimmConfig
from learning.contract import Needs
from learning.encoders.image import TimmEncoder
from learning.export import export
from learning.image_learner import ImageLearner
from schemas.records import U8
from schemas.stream import Shape

BATCH, IMAGES, ROUNDS = 128, 1024, 3
WARM, UPDATES = 2, 8
BARS = {"cpu": 1.2, "cuda": 1.5}
DEFAULT = TimmConfig()
LARGE = TimmConfig(backbone="vit_small_patch16_224", size=224)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def clock() -> float:
    """Of the CPU, or of the wall once the GPU has done all."""
    if device() == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def images() -> U8:
    """As many kinds of colours as photographs have: what they cost to change depends on them."""
    return np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)


def learner() -> ImageLearner:
    config = LearnerConfig(
        objective=(VicregConfig(),), batch_entities=BATCH, held_out_share=0.0, min_entities=BATCH
    )
    made = ImageLearner(config, DEFAULT, cifar.SHAPE, device=device())
    made.receive(cifar.windows(Part(images(), np.zeros(IMAGES, np.int64))))
    return made


def ours() -> tuple[float, float]:
    """Images per second of the learner's own loop, from bytes; and the GPU's memory in MB."""
    torch.set_num_threads(1)
    made, began = learner(), 0.0
    for update in range(WARM + UPDATES):
        if update == WARM:
            began = clock()
        made.learn()
    rate = BATCH * UPDATES / (clock() - began)
    peak = torch.cuda.max_memory_allocated() / 1e6 if device() == "cuda" else 0.0
    return rate, peak


def looks() -> float:
    """Images per second of which two looks are cut, from bytes."""
    torch.set_num_threads(1)
    made = learner()
    drawn, rng = made.replay.newest(BATCH), np.random.default_rng(0)
    return _rate(lambda: made.kind.views(drawn, Needs(slices=2), rng, augment=True), BATCH)


def served(encoder: TimmConfig, batch: int) -> float:
    """Images per second that ONNX Runtime encodes, from bytes of the encoder's size, on one thread or the GPU."""
    made = TimmEncoder(Shape(0, 1, side=encoder.size, keep="pixels"), encoder).eval()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    kinds = [p for p in ("CUDAExecutionProvider",) if device() == "cuda"]
    graph = export(made, {})["encode"]
    session = ort.InferenceSession(graph, options, [*kinds, "CPUExecutionProvider"])
    shape = (batch, encoder.size, encoder.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return _rate(lambda: session.run(["embedding"], {"pixels": pixels}), batch)


def _rate(step: Callable[[], object], images: int, seconds: float = 3.0) -> float:
    """The best of five stretches, after one step: others may be at work here."""
    step()
    best = 0.0
    for _ in range(5):
        began, done = clock(), 0
        while (spent := clock() - began) < seconds / 5 or not done:
            step()
            done += images
        best = max(best, done / spent)
    return best


def training() -> list[Item]:
    """In turns, best of three; without lightly only our own figure, which cannot fail."""
    rows = image_reference.columns(
        DEFAULT, LearnerConfig().views, images(), group=True, device=device()
    )
    mine, theirs, peak, why = [], list[float](), 0.0, ""
    for _ in range(ROUNDS):
        rate, peak = apart(ours)
        mine.append(rate)
        try:
            theirs.append(image_reference.images_per_second(rows, WARM + UPDATES, BATCH))
        except Missing as error:
            why = str(error)
            break
    name = f"image training, 32 px, batch {BATCH}, two looks"
    out = [shown(f"{name}: afresh's VICReg", max(mine), "images/s")]
    if peak:
        out.append(shown(f"{name}: GPU memory", peak, "MB"))
    if why:
        print(f"Without lightly: {why}")
        return out
    out.append(shown(f"{name}: lightly's VICReg", max(theirs), "images/s"))
    ratio = max(mine) / max(theirs)
    return [*out, at_least(f"{name}: against lightly's", ratio, "ratio", BARS[device()])]


def measure() -> list[Item]:
    return [
        *training(),
        shown("two looks at an image of 32 px, from bytes", apart(looks), "images/s"),
        shown(f"serving, {DEFAULT.backbone} at 32 px", apart(served, DEFAULT, 64), "images/s"),
        shown(f"serving, {LARGE.backbone}", apart(served, LARGE, 8), "images/s"),
    ]

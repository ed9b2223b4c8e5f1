"""The learner of images: each window is one image; several updates are made of each, from a replay of pixels."""

import msgspec
import torch
import torch.nn.functional as F

from learning.config import EncoderConfig
from learning.config_base import refuse
from learning.contract import Batch
from learning.encoders.image import TimmEncoder
from learning.image_replay import ImageReplay
from learning.kinds.images import Images
from learning.learner import EVALUATED, Learner
from learning.learner_state import HELD_BYTES
from learning.student import Student
from schemas.records import I64, Windows

HELD = EVALUATED + EVALUATED // 4  # held-out images that there is room for at least
SEEN = (
    "slices",
    "masked",
    "window",
)  # views whose rows are looks at the batch's images, side by side


class ImageLearner(Learner):
    """Images of one entity may be in one batch; held-out entities never are."""

    encoder: TimmEncoder
    ema: TimmEncoder
    replay: ImageReplay
    held: ImageReplay

    def _remember(self) -> None:
        c, encoder = self.config, self.encoder
        if self.needs.patches and encoder.grid() < 2:
            needs = (
                "its last map has one place, and an objective hides patches of it: choose a ViT, or for a ResNet "
                'stem = "small" or a larger size'
            )
            raise refuse("encoder.backbone", repr(encoder.config.backbone), needs)
        size = encoder.config.size
        self.kind = Images(c.views, size, encoder.patch, encoder.grid(), self.device)
        self.replay, self.held = self._stores(encoder.config)

    def _stores(self, encoder: EncoderConfig) -> tuple[ImageReplay, ImageReplay]:
        c, shape = self.config.replay, self.shape
        room = max(HELD_BYTES, HELD * shape.pixels)
        most = min(room, max(1 << 16, c.max_bytes // 4))
        held = msgspec.structs.replace(c, max_bytes=most, policy="fifo")
        return ImageReplay(c, shape, encoder.dim), ImageReplay(held, shape, 0)

    def _ready(self) -> bool:
        few = self.updates == 0 and len(self.replay) < self.config.min_entities
        return not few and len(self.replay) >= 2

    def _draw(self) -> Windows | None:
        self._drawn: I64 = self.replay.draw(self.config.batch_entities, self.rng)
        return self.replay.take(self._drawn) if len(self._drawn) >= 2 else None

    @torch.no_grad()
    def _learnt(self, see: Student, batch: Batch) -> None:
        """The replay is told the vectors of the step's images: of each the mean over its looks."""
        of = (see.done(batch.views[name]) for name in SEEN if name in batch.views)
        for output in of:
            if output is not None:
                z_MD = output.z_BD.float()
                z_BVD = z_MD.reshape(len(self._drawn), -1, z_MD.shape[1])
                self.replay.learnt(self._drawn, F.normalize(z_BVD.mean(1), dim=1).cpu().numpy())
                return

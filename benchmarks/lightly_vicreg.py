"""lightly's VICReg, in an environment of its own: `python lightly_vicreg.py train|speed IN OUT`.

Nothing of afresh is imported here. IN is an .npz: images [N, S, S, 3] uint8, batch, updates, seed, rate (of AdamW), the
views' strengths, the backbone (name, width of its stages, GroupNorm or its own BatchNorm) and the expander's width.
`train` also has `asked` [Q, S, S, 3], whose features it writes; device names where.

Views are its VICRegTransform, image by image, as its users have them; the stem is one for small images, without which
a ResNet sees 1 × 1 pixels."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

GROUP, GROUPS = 8, 32  # as in learning/encoders/image.py
WARM = 5
MEAN, DEVIATION = [0.5] * 3, [0.25] * 3


def backbone(rows: Any) -> Any:
    """timm's, with the stem for small images."""
    import timm
    from torch import nn

    channels = [int(c) for c in rows["channels"]]
    made: Any = timm.create_model(
        str(rows["backbone"]), num_classes=0, channels=channels, stem_width=channels[0] // 2
    )
    width = made.bn1.num_features
    made.conv1 = nn.Conv2d(3, width, 3, int(rows["stride"]), 1, bias=False)
    made.maxpool = nn.Identity()
    if rows["group"]:
        group_normed(made)
    return made


def group_normed(module: Any) -> None:
    from torch import nn

    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            new = nn.GroupNorm(max(1, min(GROUPS, channels // GROUP)), channels)
            new.load_state_dict({"weight": child.weight, "bias": child.bias})
            setattr(module, name, new)
        else:
            group_normed(child)


class Training:
    """Its model, loss, views and loader."""

    def __init__(self, rows: Any) -> None:
        import torch
        from lightly.loss.vicreg_loss import VICRegLoss
        from lightly.models.modules.heads import VICRegProjectionHead
        from lightly.transforms.vicreg_transform import VICRegTransform
        from PIL import Image

        torch.manual_seed(int(rows["seed"]))
        self.device, self.size = torch.device(str(rows["device"])), int(rows["size"])
        strength = {f"cj_{k}": float(rows[k]) for k in ("bright", "contrast", "sat", "hue")}
        images = rows["images"]
        views = VICRegTransform(
            input_size=self.size, cj_prob=float(rows["jitter"]), cj_strength=1.0, **strength,
            min_scale=float(rows["least"]), random_gray_scale=float(rows["grey"]), solarize_prob=0.0,
            gaussian_blur=0.0, hf_prob=float(rows["flip"]),
            normalize={"mean": MEAN, "std": DEVIATION},
        )  # fmt: skip

        class Images(torch.utils.data.Dataset[Any]):
            def __len__(self) -> int:
                return len(images)

            def __getitem__(self, at: int) -> Any:
                return views(Image.fromarray(images[at]))

        self.backbone = backbone(rows)
        wide = int(rows["expander"])
        self.head = VICRegProjectionHead(self.backbone.num_features, wide, wide, 2)
        self.backbone.to(self.device), self.head.to(self.device)
        self.loss = VICRegLoss()
        weights = [*self.backbone.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(weights, lr=float(rows["rate"]), weight_decay=1e-4)
        self.loader = torch.utils.data.DataLoader(
            Images(), batch_size=int(rows["batch"]), shuffle=True, drop_last=True,
            num_workers=int(rows["workers"]),
        )  # fmt: skip

    def updates(self) -> Any:
        """Endless; yields after each."""
        while True:
            for first, second in self.loader:
                y = [self.head(self.backbone(x.to(self.device))) for x in (first, second)]
                loss = self.loss(*y)
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                yield

    def features(self, images: Any) -> Any:
        import torch
        from torch.nn.functional import interpolate

        self.backbone.eval()
        parts = []
        with torch.no_grad():
            for at in range(0, len(images), 256):
                x = torch.from_numpy(images[at : at + 256]).permute(0, 3, 1, 2).float() / 255.0
                if x.shape[2] != self.size:
                    x = interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
                x = (x - MEAN[0]) / DEVIATION[0]
                parts.append(self.backbone(x.to(self.device)).cpu().numpy())
        return np.concatenate(parts)


def main() -> None:
    import torch

    what, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    rows = np.load(source)
    torch.set_num_threads(1)
    training, updates = Training(rows), int(rows["updates"])
    steps = training.updates()
    clock = time.process_time if training.device.type == "cpu" else time.perf_counter
    began = clock()
    for update in range(updates):
        if what == "speed" and update == WARM:
            began = clock()
        next(steps)
    if training.device.type != "cpu":
        torch.cuda.synchronize()
    seconds = clock() - began
    if what == "speed":
        rate = int(rows["batch"]) * (updates - WARM) / seconds
        target.write_text(json.dumps({"images_per_s": rate}))
    else:
        np.savez(target, vectors=training.features(rows["asked"]), seconds=seconds)


if __name__ == "__main__":
    main()

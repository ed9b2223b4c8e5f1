"""A learner as flat tensors and a JSON-able dict: safetensors + JSON hold all of it, no pickle."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learning.config import ReplayConfig
from learning.replay import Replay
from schemas.errors import SnapshotError
from schemas.stream import Shape

if TYPE_CHECKING:
    from learning.learner import Learner

FORMAT = 1
HELD_BYTES = 32 << 20
COUNTERS = ("updates", "attempts", "sequences", "received", "records", "share", "counted", "looked")

Flat: TypeAlias = dict[str, Tensor | npt.NDArray[Any]]
Meta: TypeAlias = dict[str, Any]


def save(learner: "Learner") -> tuple[Flat, Meta]:
    """Everything a learner needs to continue bit by bit. Its tensors are copies."""
    flat: Flat = {}
    for part, module in _modules(learner).items():
        flat |= {f"{part}.{k}": t.detach().cpu().clone() for k, t in module.state_dict().items()}
    for i, parameter in enumerate(learner.parameters):
        for name, value in learner.optimizer.state.get(parameter, {}).items():
            flat[f"optimizer.{i}.{name}"] = value.detach().cpu().clone()
    for part, thing in learner.parts().items():
        flat |= {f"{part}.{k}": v.copy() for k, v in thing.state_dict().items()}
    meta = {
        "format": FORMAT,
        "encoder": msgspec.to_builtins(learner.encoder_config),
        "shape": msgspec.to_builtins(learner.shape),
        "objectives": learner.names,
        "skipped": learner.skipped,
        "rng": _texts(learner.rng.bit_generator.state),
        **{name: getattr(learner, name) for name in COUNTERS},
    }
    return flat, meta


def load(learner: "Learner", flat: Flat, meta: Meta) -> None:
    """Makes a new learner of the same settings continue where the saved one stood."""
    wanted = {
        "format": FORMAT,
        "encoder": msgspec.to_builtins(learner.encoder_config),
        "shape": msgspec.to_builtins(learner.shape),
        "objectives": learner.names,
    }
    saved = {**meta, "shape": _shape(meta)}
    for key, value in wanted.items():
        if saved[key] != value:
            raise SnapshotError(
                f"The learner's snapshot has {key} {meta[key]}, the settings say {value}. "
                "Restore the settings, or start with a new state folder."
            )
    if any(name.startswith("previous.") for name in flat):
        learner.mark_released()
    for part, module in _modules(learner).items():
        module.load_state_dict({k: torch.as_tensor(v) for k, v in under(flat, part).items()})
    for i, parameter in enumerate(learner.parameters):
        saved = under(flat, f"optimizer.{i}")
        if saved:
            learner.optimizer.state[parameter] = {
                name: _laid_out(torch.as_tensor(value), parameter) for name, value in saved.items()
            }
    for part, thing in learner.parts().items():
        thing.load_state_dict({k: np.asarray(v) for k, v in under(flat, part).items()})
    learner.skipped = dict(meta["skipped"])
    learner.rng.bit_generator.state = _numbers(meta["rng"])
    for name in COUNTERS:
        setattr(learner, name, meta.get(name, 0))  # the last two came later than its format


def changed_encoder(learner: "Learner", meta: Meta) -> bool:
    """Whether it was saved by a learner that differs in its encoder alone: it has the same records."""
    same = _shape(meta) == msgspec.to_builtins(learner.shape)
    return bool(same and meta["encoder"] != msgspec.to_builtins(learner.encoder_config))


def _shape(meta: Meta) -> Any:
    """Fields that came to it later have their defaults."""
    return msgspec.to_builtins(msgspec.convert(meta["shape"], Shape))


def held_store(config: ReplayConfig, shape: Shape, window: int) -> Replay:
    """Where the newest windows of held-out entities are."""
    small = ReplayConfig(max_bytes=min(HELD_BYTES, config.max_bytes), per_entity=1)
    return Replay(small, shape, window)


def _modules(learner: "Learner") -> dict[str, torch.nn.Module]:
    parts = {"encoder": learner.encoder, "ema": learner.ema}
    last = {} if learner.previous is None else {"previous": learner.previous}
    return {**parts, **last, "objectives": learner.objectives}


def _laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A copy, in memory as the parameter is: a fused optimiser goes through both side by side."""
    if value.shape != like.shape:
        return value.clone().to(like.device)
    return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)


def under(flat: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Of one part of a learner, by the names that it gave."""
    prefix = f"{part}."
    return {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}


def _texts(state: Any) -> Any:
    """Integers as text: a generator's have 128 bits, too many for some JSON readers."""
    if isinstance(state, Mapping):
        return {k: _texts(v) for k, v in state.items()}
    return f"#{state}" if isinstance(state, int) else state


def _numbers(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {k: _numbers(v) for k, v in state.items()}
    return int(state[1:]) if isinstance(state, str) and state.startswith("#") else state

"""The learner: windows in, steps of the objectives, averaged weights out.

Compute, check, then apply: a step whose loss or gradient is not finite changes nothing."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from learning import encoders, learner_state, objectives
from learning.config import EncoderConfig, LearnerConfig
from learning.config_base import refuse
from learning.contract import Batch, Needs, Objective, Update
from learning.encoders.base import Encoder
from learning.held_out import MOST, held_out, lowered
from learning.kinds.events import subset
from learning.quality import effective_rank, uniformity
from learning.student import Student, embed, moved
from schemas.records import I64, Told, Windows
from schemas.stream import Shape

EVALUATED = 1024  # held-out entities at most


@dataclass(frozen=True)
class StepStats:
    """One step. `skipped`: why it changed nothing."""

    skipped: str = ""
    loss: float = float("nan")
    objective_losses: dict[str, float] = field(default_factory=dict)
    gradient_norm: float = float("nan")
    sequences: int = 0


@dataclass(frozen=True)
class Quality:
    """Of the averaged weights, on entities that were never trained on."""

    entities: int
    loss: float = float("nan")
    effective_rank: float = float("nan")
    uniformity: float = float("nan")


def due_updates(
    records: int, updates: int, busy_s: float, elapsed_s: float, config: LearnerConfig
) -> int:
    """How many updates to make now: `updates_per_record`, as far as `cpu_share` lets us."""
    if busy_s > config.cpu_share * elapsed_s:
        return 0
    return max(0, int(records * config.updates_per_record) - updates)


class Learner:
    """One stream's learner, whatever its kind. Deterministic on a CPU, given seed and windows."""

    kind: Any
    replay: Any
    held: Any

    def __init__(
        self,
        config: LearnerConfig,
        encoder: EncoderConfig,
        shape: Shape,
        own_objectives: Sequence[tuple[str, float, Objective]] | None = None,
        device: str = "cpu",
    ) -> None:
        self.config, self.encoder_config, self.shape = config, encoder, shape
        self.device = torch.device(device)
        self.updates = self.attempts = self.sequences = self.received = self.records = 0
        self.skipped: dict[str, int] = {}
        self.counted = 0  # nodes of a graph when the held-out share was looked at last
        self.looked = 0  # the adjacency's clock when nodes were drawn last
        self.share = MOST if config.held_out_share else 0.0
        self.rng = np.random.default_rng(config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.encoder = encoders.build(encoder, shape)
            self.encoder.begin()
            self.encoder.to(self.device)
            parts = own_objectives or [
                (
                    str(type(o).__struct_config__.tag),
                    o.weight,
                    objectives.build(o, encoder, shape, self.encoder.token_width),
                )
                for o in config.objective
            ]
        self.names = [name for name, _, _ in parts]
        self.weights = [weight for _, weight, _ in parts]
        self.objectives = nn.ModuleList(o for _, _, o in parts).to(self.device)
        self.needs = Needs.all_of(o.needs for _, _, o in parts)
        if self.needs.variance and not encoder.variance:
            raise refuse("encoder.variance", "false", "an objective learns it: it must be true")
        self.ema = copy.deepcopy(self.encoder).requires_grad_(requires_grad=False).eval()
        self.previous: Encoder | None = None  # of the last release, for those that learn from it
        self._remember()
        self.optimizer = self._make_optimizer()

    def _remember(self) -> None:
        """Sets `kind`, `replay` and `held`: how it is looked at, what is learnt from, what is held out of it."""
        raise NotImplementedError

    def parts(self) -> dict[str, Any]:
        """What has a state of its own beside modules and optimiser, by its name in the snapshot."""
        return {"replay": self.replay, "held": self.held}

    def _make_optimizer(self) -> torch.optim.AdamW:
        every = [*self.encoder.named_parameters(), *self.objectives.named_parameters()]
        decayed = [p for name, p in every if p.ndim > 1 and "embedding" not in name]
        plain = [p for name, p in every if p.ndim <= 1 or "embedding" in name]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        c = self.config
        return torch.optim.AdamW(
            groups, lr=c.learning_rate, weight_decay=c.weight_decay, fused=True
        )

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def receive(self, windows: Windows) -> int:
        """Takes windows in; returns how many records were new. Held-out entities are kept apart."""
        self.received += len(windows)
        if len(empty := np.flatnonzero(np.diff(windows.offsets) == 0)):  # graphs without live edges
            windows = subset(windows, np.delete(np.arange(len(windows)), empty))
        apart = held_out(windows.entity, self.share)
        self.held.add(subset(windows, np.flatnonzero(apart)), self.rng)
        windows = subset(windows, np.flatnonzero(~apart))
        self._lower_share()
        if not len(windows):
            return 0
        new = self.replay.add(windows, self.rng)
        self._observe(windows, new)
        self.records += (total := int(new.sum()))
        return total

    def _observe(self, windows: Windows, new: I64) -> None:
        """Windows were taken in, of which the newest new [B] rows were not seen before."""

    def _lower_share(self) -> None:
        c, owners = self.config, self.held.owners()
        share = lowered(self.share, len(owners), c.held_out_share, c.held_out_entities)
        if share < self.share:
            self.share = share
            self.held.forget(owners[~held_out(owners, share)])

    def describe(self, told: Told) -> None:
        """What was said of nodes, where entities are some."""

    def forget(self, entities: I64) -> None:
        """Drops what is kept of these entities."""
        self.replay.forget(entities)
        self.held.forget(entities)

    def learn(self) -> StepStats | None:
        """One step, or None while there is too little to learn from."""
        if not self._ready():
            return None
        self.prepare()
        drawn = self._draw()
        if drawn is None:
            return None
        self.attempts += 1
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.config.seed * 1_000_003 + self.attempts)
            batch = self.kind.views(drawn, self.needs, self.rng, augment=True)
            return self._step(self._to_device(batch), len(drawn))

    def _ready(self) -> bool:
        few = self.updates == 0 and len(self.replay.entities) < self.config.min_entities
        return not few and len(self.replay) >= 2

    def _draw(self) -> Any:
        """What the next step learns from, in the words of the kind; None: nothing."""
        windows = self.replay.draw(self.config.batch_entities, self.rng)
        return windows if len(windows) >= 2 else None  # an entity needs another one beside it

    def _step(self, batch: Batch, sequences: int) -> StepStats:
        self.encoder.train()
        see = self._seen_by(self.encoder)
        losses, updates = self._losses(see, batch)
        loss = torch.stack(losses) @ torch.tensor(self.weights, device=self.device)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_norm)
        values = torch.stack([loss.detach(), norm, *(part.detach() for part in losses)]).tolist()
        finite = all(np.isfinite(values))
        stats = StepStats(
            "" if finite else "non_finite",
            values[0],
            dict(zip(self.names, values[2:], strict=True)),
            values[1],
            sequences,
        )
        if finite:
            self._apply(updates, sequences)
            self._learnt(see, batch)
        else:
            self.skipped["non_finite"] = self.skipped.get("non_finite", 0) + 1
        self.optimizer.zero_grad()
        return stats

    def _seen_by(self, encoder: Encoder, *, frozen: bool = False) -> Student:
        return Student(encoder, self.config.bucket_views, rows=self.needs.rows, frozen=frozen)

    def _losses(self, see: Student, batch: Batch) -> tuple[list[Tensor], list[Update]]:
        kind = self.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            teach = self._seen_by(self.ema, frozen=True)
            last = self.previous and self._seen_by(self.previous, frozen=True)
            done = []
            for objective in self.objectives:
                assert isinstance(objective, Objective)
                done.append(objective(see, last if objective.needs.previous else teach, batch))
        return [loss.float() for loss, _ in done], [update for _, update in done]

    def _apply(self, updates: Sequence[Update], sequences: int) -> None:
        c = self.config
        warm = min(1.0, (self.updates + 1) / max(1, c.warmup_updates))
        for group in self.optimizer.param_groups:
            group["lr"] = c.learning_rate * warm
        self.optimizer.step()
        for objective, update in zip(self.objectives, updates, strict=True):
            assert isinstance(objective, Objective)
            objective.apply_update(update)
        self.updates += 1
        self.sequences += sequences
        decay = min(c.ema_decay, self.updates / (self.updates + 10))
        with torch.no_grad():
            theirs: list[Tensor] = list(self.ema.parameters())
            ours: list[Tensor] = list(self.encoder.parameters())
            torch._foreach_lerp_(theirs, ours, 1.0 - decay)
        self._updated()

    def _learnt(self, see: Student, batch: Batch) -> None:
        """A step was made, in which the encoder saw this."""

    def _updated(self) -> None:
        """An update was made."""

    def prepare(self) -> None:
        """Before an update."""

    @torch.no_grad()
    def evaluate(self) -> Quality:
        """Loss and spread of the averaged weights on held-out entities; changes nothing."""
        windows = self.windows(EVALUATED, held=True)
        n = len(windows)
        if n < 2:
            return Quality(n)
        z_BD = embed(self.ema, windows)
        loss = self._loss_on(self._held_parts())
        return Quality(n, loss, float(effective_rank(z_BD)), float(uniformity(z_BD)))

    def _held_parts(self) -> Iterator[Any]:
        """What is held out, in the words of the kind; in whole batches: they compare."""
        kept, size = self.held.newest(EVALUATED), self.config.batch_entities
        for start in range(0, max(1, len(kept) - size + 1), size):
            yield subset(kept, np.arange(start, min(len(kept), start + size)))

    def _loss_on(self, parts: Iterator[Any]) -> float:
        """Mean loss of the averaged weights on what the kind cuts views of."""
        rng, losses = np.random.default_rng(self.config.seed), []
        for part in parts:
            batch = self.kind.views(part, self.needs, rng, augment=False)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.seed)
                each, _ = self._losses(self._seen_by(self.ema), self._to_device(batch))
            losses.append(sum(w * float(x) for w, x in zip(self.weights, each, strict=True)))
        return float(np.mean(losses)) if losses else float("nan")

    def windows(self, n: int, *, held: bool) -> Windows:
        """A window each of up to n entities: of those held out, or of those that are trained on."""
        windows: Windows = (self.held if held else self.replay).newest(n)
        return windows

    def mark_released(self) -> None:
        """The averaged encoder as it is now is the last release's, for those that learn from it."""
        if self.needs.previous:
            self.previous = copy.deepcopy(self.ema)

    def released(self) -> Encoder:
        """A copy of the encoder with the averaged weights, on the CPU: what may be released."""
        return copy.deepcopy(self.ema).cpu().eval()

    def begin_beside(self, other: "Learner") -> None:
        """Learns from the same replay as another learner of these settings, which goes on taking in what comes."""
        self.replay, self.held = other.replay, other.held
        for name in ("received", "records", "share", "counted"):
            setattr(self, name, getattr(other, name))

    def succeed(self, other: "Learner") -> None:
        """Takes the place of the one that it was beside: counts go on from there."""
        for name in learner_state.COUNTERS:
            setattr(self, name, getattr(other, name))

    def _stores(self, encoder: EncoderConfig) -> tuple[Any, Any]:
        """`replay` and `held` as a learner with this encoder has them, empty."""
        raise NotImplementedError

    def inherit(self, flat: learner_state.Flat, meta: learner_state.Meta) -> None:
        """Takes from a learner with another encoder what it remembers, not what it has learnt."""
        stores = self._stores(msgspec.convert(meta["encoder"], EncoderConfig))
        for name, store in zip(("replay", "held"), stores, strict=True):
            found = learner_state.under(flat, name)
            store.load_state_dict({k: np.asarray(v) for k, v in found.items()})
            self.receive(store.newest(store.slots))

    def state_dict(self) -> tuple[learner_state.Flat, learner_state.Meta]:
        """All of it, for safetensors and JSON."""
        return learner_state.save(self)

    def load_state_dict(self, flat: learner_state.Flat, meta: learner_state.Meta) -> None:
        learner_state.load(self, flat, meta)

    def _to_device(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        memo: dict[int, dict[str, Tensor]] = {}  # "next" may be "slices": it stays one object
        for view in batch.views.values():
            memo.setdefault(id(view), moved(view, self.device))
        return replace(
            batch,
            views={name: memo[id(view)] for name, view in batch.views.items()},
            index=moved(batch.index, self.device),
            pairs=moved(batch.pairs, self.device),
        )

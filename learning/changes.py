"""What has changed, in words for an operator: which fields, which entities, which kinds of embeddings."""

from collections.abc import Sequence

import numpy as np

from learning.concepts import Concepts
from learning.kinds.events import subset
from learning.summaries import known, summaries
from learning.two_sample import LEAST, SURE, alone, told_apart
from learning.watch import Sample
from schemas.records import F32, I64
from schemas.stats import Changes, Concept

SHOWN = 5  # fields and entities
NARROW = 128  # dimensions of a vector that the classifier is given
CONCEPTS, EXAMPLES = 4, 3  # concepts that are told of; entities of each


def changes(
    reference: Sample, lately: Sample, names: Sequence[str], rng: np.random.Generator
) -> Changes:
    """names: of the windows' columns, numbers first.

    Both samples are runs of equally many windows, as they came, of which each entity's newest is taken."""
    out = _of_concepts(reference, lately)
    many = min(len(lately.windows), len(reference.windows) // 2)
    first = int(rng.integers(0, len(reference.windows) - many + 1))
    chosen = np.arange(first, first + many)
    then, now = _alone(reference, chosen), _alone(lately, np.arange(len(lately.windows))[-many:])
    n = min(len(then), len(now))
    if n < LEAST:
        return out
    then, now = (np.sort(rng.permutation(at)[:n]) for at in (then, now))
    # how usual a value is, by windows that are in neither sample
    shares = known(
        subset(reference.windows, np.setdiff1d(np.arange(len(reference.windows)), chosen))
    )
    pairs = [
        summaries(subset(s.windows, at), names, shares)
        for s, at in ((reference, then), (lately, now))
    ]
    entities = reference.windows.entity[then], lately.windows.entity[now]
    common = [name for name in pairs[0] if name in pairs[1]]
    vectors = _narrow((reference.vectors[then], lately.vectors[now]), rng)
    every = [
        np.column_stack([z, *(pair[name] for name in common)])
        for z, pair in zip(vectors, pairs, strict=True)
    ]
    found = told_apart(every[0], every[1], entities)
    out.accuracy, out.p, out.entities_compared = found.accuracy, found.p, n
    by_field = {name: told_apart(pairs[0][name], pairs[1][name], entities) for name in common}
    moved = [(t.accuracy, name) for name, t in by_field.items() if t.p < SURE / len(common)]
    out.fields = {name: accuracy for accuracy, name in sorted(moved, reverse=True)[:SHOWN]}
    newest = np.argsort(-found.score, kind="stable")[:SHOWN]
    out.entities = _named(entities[1][newest])
    return out


def _narrow(vectors: tuple[F32, F32], rng: np.random.Generator) -> tuple[F32, F32]:
    """Of fewer dimensions by a random projection, where they have more than NARROW: the classifier takes their cube."""
    a, b = vectors
    if a.shape[1] <= NARROW:
        return vectors
    projection = rng.standard_normal((a.shape[1], NARROW), np.float32) / np.float32(NARROW**0.5)
    return a @ projection, b @ projection


def _alone(sample: Sample, chosen: I64) -> I64:
    return chosen[alone(sample.windows.entity[chosen])]


def _of_concepts(reference: Sample, lately: Sample) -> Changes:
    concepts = Concepts(reference.vectors)
    then, now = concepts.then, concepts.shares(lately.vectors)
    change = np.abs(now - then)
    out = Changes(share_change=float(change.max()))
    for at in np.argsort(-change, kind="stable")[:CONCEPTS]:
        sample = lately if now[at] > 0 else reference
        near = np.argsort(-(sample.vectors @ concepts.centres[at]), kind="stable")
        who = sample.windows.entity[near[: 8 * EXAMPLES]]
        _, first = np.unique(who, return_index=True)
        examples = _named(who[np.sort(first)[:EXAMPLES]])
        out.concepts.append(Concept(float(then[at]), float(now[at]), examples))
    return out


def _named(entities: I64) -> list[str]:
    """As 16 digits of hex: names are not known here."""
    return [f"{hash_:016x}" for hash_ in entities.view(np.uint64).tolist()]

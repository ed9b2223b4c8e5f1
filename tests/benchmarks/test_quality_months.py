import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from rich.console import Console

from benchmarks import month_pass, retail
from benchmarks.month_pass import (
    MONTHS,
    Job,
    Outcome,
    Size,
    asked,
    bounds,
    judged,
    recall,
    releases,
    work,
)
from benchmarks.quality_months import (
    FROZEN,
    LEARNT,
    OURS,
    PARTS,
    by_name,
    described,
    items,
    matrix,
    measures,
    others,
    summary,
)
from learning.config import GruConfig
from schemas.records import category_hash

TINY = Size(GruConfig(dim=8, hidden=8, window=8, bucket_bits=6), 0.02, min_entities=4, warmup=1)
CUSTOMERS, A_MONTH = 24, 6  # rows of each customer in a month


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each customer buys products of its own, each month some rows."""
    rng, found = np.random.default_rng(0), tmp_path_factory.mktemp("retail")
    start = np.arange(np.datetime64("2010-12"), np.datetime64("2012-01")).astype("datetime64[us]")
    who = np.tile(np.repeat(np.arange(CUSTOMERS), A_MONTH), len(start))
    times = np.repeat(start.astype(np.int64), CUSTOMERS * A_MONTH)
    times = times + rng.integers(0, 20 * retail.DAY_US, len(times))
    order = np.argsort(times)
    product = 10_000 + who + CUSTOMERS * rng.integers(0, 2, len(who))
    table = {
        "InvoiceNo": [f"{500_000 + i // 2}" for i in range(len(who))],
        "StockCode": [str(p) for p in product[order]],
        "Quantity": rng.integers(1, 9, len(who)),
        "InvoiceDate": times[order].astype("datetime64[us]"),
        "UnitPrice": rng.uniform(1, 5, len(who)),
        "CustomerID": who[order] + 12_000,
        "Country": ["France"] * len(who),
    }
    parquet.write_table(pa.table(table), found / "online_retail.parquet")
    return found


@pytest.fixture(scope="module", autouse=True)
def cut_offs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(month_pass, "next_product", lambda vectors, _: float(vectors.std()))
        yield


@pytest.fixture(scope="module")
def outcomes(folder):
    return [work(Job(name, 0, **how), str(folder), TINY) for name, how in LEARNT.items()]


def test_who_is_judged_is_never_learnt_from(folder, monkeypatch):
    data, seen = retail.load(folder), set()
    receive = month_pass.FieldLearner.receive

    def noted(self, windows):
        seen.update(windows.entity.tolist())
        return receive(self, windows)

    monkeypatch.setattr(month_pass.FieldLearner, "receive", noted)
    made = list(releases(data, Job(OURS, 0), TINY))
    names, chosen = np.array(data.names), judged(data)
    assert seen == {category_hash(name) for name in names[~chosen]}
    assert len(made) == len(MONTHS) and made[-1][1] > made[0][1] > 0


def test_a_month_is_judged_by_its_own_rows_alone(folder):
    data = retail.load(folder)
    for (low, high), (earlier, later) in zip(
        bounds(data), asked(data, TINY.encoder)[0], strict=True
    ):
        assert len(earlier) == len(later) == judged(data).sum()
        for part in (earlier, later):
            assert set(part.rows.time_us.tolist()) <= set(data.time_us[low:high].tolist())
            assert (part.first_us >= data.time_us[low]).all()  # nothing is known of before


def test_parts_of_other_purchases_are_apart(folder):
    for earlier, later in asked(retail.load(folder), TINY.encoder)[1]:
        assert len(earlier) == len(later) > 0
        opening = later.rows.time_us[later.offsets[:-1]]
        assert (opening - earlier.rows.time_us[earlier.offsets[1:] - 1] > month_pass.GAP_US).all()


def test_one_that_begins_anew_learns_as_much_in_a_month(outcomes):
    per_name = {o.job.name: o for o in outcomes}
    ours, scratch = per_name[OURS], per_name["from scratch each month"]
    assert abs(ours.updates - scratch.updates) <= len(MONTHS)  # a fraction of an update a month
    assert ours.halves[0] == pytest.approx(scratch.halves[0])  # in the first month they are one
    assert not np.array_equal(ours.halves, scratch.halves)


def test_distillation_begins_with_the_second_release(outcomes):
    per_name = {o.job.name: o for o in outcomes}
    assert per_name["with distillation"].halves[0] == pytest.approx(per_name[OURS].halves[0])
    assert not np.array_equal(per_name["with distillation"].halves, per_name[OURS].halves)


def test_recall_counts_queries_whose_own_is_among_the_nearest_and_no_ties():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.normal(size=(30, 4))) for _ in range(2))
    for k in (1, 5, 30):
        place = [(row > row[i]).sum() for i, row in enumerate((a @ b.T).numpy())]
        assert recall(a, b, k) == pytest.approx(np.mean(np.array(place) < k))
    assert recall(torch.ones(5, 2), torch.ones(5, 2), 1) == 0.0


def test_what_a_matrix_says():
    found = measures(np.array([[0.5, 0.4, 0.1], [0.3, 0.6, 0.5], [0.2, 0.3, 0.7]]))
    assert found["its own month"].tolist() == [0.5, 0.6, 0.7]
    assert found["the next month"].tolist() == [0.4, 0.5]
    assert found["earlier months, at the end"].tolist() == [0.2, 0.3]
    assert found["forgotten"] == pytest.approx([0.3, 0.3])


def test_every_learner_has_its_tables_and_figures(outcomes):
    out = io.StringIO()
    console, found = Console(file=out, width=250), by_name(outcomes)
    for part in PARTS:
        for name, of in found.items():
            console.print(matrix(name, part, of))
        console.print(summary(found, part))
    console.print(others(found))
    assert all(name in out.getvalue() for name in (*LEARNT, FROZEN))
    assert all(np.isfinite(item["value"]) for item in items(found))
    assert sum(item["bar"] is not None for item in items(found)) == 1 + 5 * (len(found) - 1)
    assert all(described(outcome) for outcome in outcomes)


def test_the_frozen_one_is_our_first_release(outcomes):
    found = by_name(outcomes)
    frozen, ours = found[FROZEN][0], found[OURS][0]
    assert (frozen.halves == ours.halves[0]).all()
    assert isinstance(frozen, Outcome) and frozen.next_product == ours.frozen

"""Online Retail as a stream and as two tasks: who returns, and which products they buy next.

Shapes: N rows of the stream, in time order; Q queries, each a customer at a monthly cut-off."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix, vstack
from scipy.sparse.linalg import svds

from learning.held_out import mixed
from schemas.records import F32, F64, I64, Bool, category_hash
from schemas.stream import Field, FieldType, StreamConfig

DAY_US = 86_400_000_000
WITHIN_DAYS = 90  # the last cut-off has so many days of data after it
MONTHS = range(3, 10)  # cut-offs at the first of March to September 2011
PRODUCTS = 20
MICRO_BATCH = 1024
STREAM = StreamConfig(
    entity="CustomerID",
    time="InvoiceDate",
    field=(
        Field("product", FieldType.category, "StockCode"),
        Field("country", FieldType.category, "Country"),
        Field("quantity", FieldType.number, "Quantity"),
        Field("price", FieldType.number, "UnitPrice"),
    ),
)
Names = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Retail:
    """The rows that have a customer, as columns of the analyst: the stream is read from `table`."""

    table: pa.Table
    time_us: I64
    customer: I64  # [N] 0.., in the order of `names`
    product: I64  # [N]
    invoice: I64  # [N]
    bought: Bool  # [N] neither a cancellation nor a correction
    quantity: F64
    price: F64
    names: list[str]
    top: I64  # the PRODUCTS bought most often, postage and fees aside

    def before(self, time_us: int) -> int:
        """Rows before this instant."""
        return int(np.searchsorted(self.time_us, time_us))


@dataclass(frozen=True)
class Queries:
    """Every customer known at each cut-off, and what comes true."""

    cut: I64  # [Q] which cut-off
    customer: I64  # [Q]
    returns: Bool  # [Q] buys within 90 days
    buys: Bool  # [Q, PRODUCTS] with the next purchase; nothing where it does not return
    age: F64  # [Q, 1] log of the days since the last event: every probe has it
    selection: Bool  # [Q] of the half of the customers by which settings were chosen


def cut_offs() -> list[int]:
    return [int(np.datetime64(f"2011-{m:02d}-01", "us").astype(np.int64)) for m in MONTHS]


def load(folder: Path) -> Retail:
    table = pq.read_table(folder / "online_retail.parquet")
    table = table.filter(pc.is_valid(table["CustomerID"])).combine_chunks()
    names, customer = np.unique(table["CustomerID"].to_numpy(), return_inverse=True)
    codes, product = np.unique(_texts(table, "StockCode"), return_inverse=True)
    numbers, invoice = np.unique(_texts(table, "InvoiceNo"), return_inverse=True)
    quantity = table["Quantity"].to_numpy().astype(np.float64)
    cancelled = np.char.startswith(numbers.astype(str), "C")[invoice]
    bought = (quantity > 0) & ~cancelled
    often = np.bincount(product[bought], minlength=len(codes))
    often[~np.char.isdigit(np.char.ljust(codes.astype(str), 5).astype("U5"))] = 0
    time_us = table["InvoiceDate"].to_numpy().astype("datetime64[us]").astype(np.int64)
    top = np.argsort(-often, kind="stable")[:PRODUCTS]
    price = table["UnitPrice"].to_numpy()
    return Retail(
        table, time_us, customer, product, invoice, bought, quantity, price, names.astype(str).tolist(), top
    )  # fmt: skip


def _texts(table: pa.Table, name: str) -> Names:
    return np.asarray(table[name].to_numpy(), dtype=object)


def micro_batches(data: Retail) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The stream in micro-batches, none of which spans a cut-off; each with its first row's number."""
    bounds = [0, *(data.before(t) for t in cut_offs())]
    for low, high in pairwise(bounds):
        for at in range(low, high, MICRO_BATCH):
            part = data.table.slice(at, min(MICRO_BATCH, high - at))
            yield at, part.to_batches()[0]


def queries(data: Retail) -> Queries:
    n = len(data.names)
    half = (mixed(np.array([category_hash(name) for name in data.names])) & 1).astype(bool)
    parts = []
    for cut, now in enumerate(cut_offs()):
        k = data.before(now)
        known = np.unique(data.customer[:k])
        last = np.zeros(n, np.int64)
        np.maximum.at(last, data.customer[:k], data.time_us[:k])
        end = data.before(now + WITHIN_DAYS * DAY_US)
        rows = k + np.flatnonzero(data.bought[k:end])
        someone, first = np.unique(data.customer[rows], return_index=True)
        returns = np.zeros(n, np.bool_)
        returns[someone] = True
        next_invoice = np.full(n, -1, np.int64)
        next_invoice[someone] = data.invoice[rows[first]]
        buys = np.zeros((n, PRODUCTS), np.bool_)
        rows = rows[data.invoice[rows] == next_invoice[data.customer[rows]]]
        hit = data.product[rows][:, None] == data.top
        np.logical_or.at(buys, data.customer[rows], hit)
        age = np.log1p((now - last[known, None]) / DAY_US)
        parts.append(
            (np.full(len(known), cut), known, returns[known], buys[known], age, half[known])
        )
    return Queries(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def aggregates(data: Retail, asked: Queries, *, richer: bool) -> F64:
    """What an analyst would count of each query's past: count, sums, means, recency, distinct products;
    `richer` adds spreads, invoices, tenure, rhythm, cancellations and recent counts. [Q, features]"""
    out = []
    for cut, now in enumerate(cut_offs()):
        k, n = data.before(now), len(data.names)
        who, t = data.customer[:k], data.time_us[:k]
        count = np.bincount(who, minlength=n)
        some = np.maximum(count, 1)
        spent = data.quantity[:k] * data.price[:k]
        columns: list[I64 | F64] = [count, _distinct(who, data.product[:k], n)]
        for x in (data.quantity[:k], data.price[:k], spent):
            total = np.bincount(who, x, n)
            columns += [total, total / some]
            if richer:
                squares = np.bincount(who, x * x, n) / some
                columns.append(np.sqrt(np.maximum(squares - (total / some) ** 2, 0)))
        last, first = np.zeros(n, np.int64), np.full(n, now)
        np.maximum.at(last, who, t)
        np.minimum.at(first, who, t)
        columns.append((now - last) / DAY_US)
        if richer:
            invoices = _distinct(who, data.invoice[:k], n)
            columns += [invoices, count / np.maximum(invoices, 1), (now - first) / DAY_US]
            columns += [(last - first) / DAY_US / np.maximum(invoices, 1)]
            columns += [np.bincount(who[~data.bought[:k]], minlength=n)]
            columns += [np.bincount(who[t > now - d * DAY_US], minlength=n) for d in (7, 30, 90)]
        x = np.stack(columns, 1).astype(np.float64)[asked.customer[asked.cut == cut]]
        out.append(np.sign(x) * np.log1p(np.abs(x)))
    return np.concatenate(out)


def _distinct(who: I64, what: I64, n: int) -> I64:
    pairs = np.unique(who * (int(what.max(initial=0)) + 1) + what)
    return np.bincount(pairs // (int(what.max(initial=0)) + 1), minlength=n)


def product_counts(data: Retail, asked: Queries, window: int = 0) -> csr_matrix:
    """log(1 + how often) of each product in each query's past, or in its last `window` rows. [Q, products]"""
    parts = []
    for cut, now in enumerate(cut_offs()):
        k = data.before(now)
        rows = np.arange(k)
        if window:
            order = np.argsort(data.customer[:k], kind="stable")
            ends = np.cumsum(np.bincount(data.customer[:k], minlength=len(data.names)))
            rows = order[ends[data.customer[order]] - np.arange(k) <= window]
        shape = (len(data.names), int(data.product.max()) + 1)
        counts = csr_matrix((np.ones(len(rows)), (data.customer[rows], data.product[rows])), shape)
        parts.append(counts[asked.customer[asked.cut == cut]].log1p())
    return vstack(parts).tocsr()


def svd(data: Retail, asked: Queries, dim: int = 64, window: int = 0) -> F32:
    """The counts' first singular directions, fit at the last cut-off: it has seen more than a stream
    had at the earlier ones. [Q, dim]"""
    counts = product_counts(data, asked, window)
    last = counts[asked.cut == asked.cut.max()]
    _, _, vt = svds(last, k=dim, random_state=0)
    return np.asarray(counts @ vt.T, np.float32)

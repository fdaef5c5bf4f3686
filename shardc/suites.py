"""Suites of problems to compare strategies on, as specs: seeded, so that one seed is one suite on any machine.

Tables of the `metasyn` suites are drawn from a pool with the statistics that AutoShard published of its data
(2208.06399), which is the public access dataset with 856 tables. The data are not ours to ship; the pool
has their sizes, pooling factors, dims and access histograms in distribution. What goes with what in one table was not
published: here these are independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from shardc.memory import shard_bytes
from shardc.problem import ACCESS_BINS, Floats
from shardc.spec import SHARDING_TYPES

SpecDict = dict[str, Any]

# --- DLRM-DCNv2, as MLPerf Training has it ----------------------------------------------------------------------------

_DLRM_ROWS = (
    *(40_000_000, 39_060, 17_295, 7424, 20_265, 3, 7122, 1543, 63, 40_000_000, 3_067_956, 405_282, 10),
    *(2209, 11_938, 155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12_973, 108, 36),
)
_DLRM_LOOKUPS = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)


def dlrm_dcnv2(seed: int) -> Iterator[SpecDict]:
    """The 26 tables on 8, 16 and 128 devices; nothing is random."""
    tables = [
        {"name": f"t_cat_{i}", "rows": rows, "dim": 128, "pooling": lookups, "access": {"zipf": 1.05}}
        for i, (rows, lookups) in enumerate(zip(_DLRM_ROWS, _DLRM_LOOKUPS, strict=True))
    ]
    for devices in (8, 16, 128):
        yield _spec(f"dlrm-dcnv2-{devices}", tables, _cluster("h100-80gb", devices))


# --- MetaSyn ----------------------------------------------------------------------------------------------------------

POOL_TABLES = 856
MOST_ROWS, MEAN_ROWS = 12_543_670, 4_107_458
MOST_POOLING, MEAN_POOLING, POOLING_SD = 193.0, 15.8, 25.6
BIN_MEANS = (
    *(0.225, 0.104, 0.126, 0.106, 0.082, 0.056, 0.039, 0.033, 0.031),
    *(0.027, 0.027, 0.022, 0.019, 0.015, 0.006, 0.008, 0.033),
)
"""Published means, over tables, of the shares of unique indices by access count; their sum of 0.959 is scaled to 1."""
BIN_SDS = (
    *(0.227, 0.069, 0.092, 0.076, 0.059, 0.051, 0.048, 0.057, 0.067),
    *(0.064, 0.074, 0.069, 0.070, 0.081, 0.043, 0.051, 0.123),
)

_POOL_SEED = 856
_ROWS_POWER = MOST_ROWS / MEAN_ROWS - 1.0  # u**p on (0, 1) has mean 1 / (p + 1)
# Of a lognormal law cut off at the largest, whose mean and standard deviation are then the published ones.
_POOLING_MU, _POOLING_SIGMA = 1.965, 1.295
_PROJECTIONS = 300  # onto shares that sum to 1, and onto columns with the published moments

VARIED = ((20, 4), (40, 4), (80, 4), (40, 8), (80, 8), (200, 8), (100, 16), (200, 16), (400, 40), (800, 80))
"""Tables and devices of the tasks of varied size."""


@dataclass(frozen=True, slots=True)
class TablePool:
    """Tables to draw tasks from.

    Attributes:
        rows: int[T].
        pooling: float[T], mean lookups of a sample.
        bins: float[T, 17], share of unique indices by access count; rows sum to 1.
    """

    rows: Floats
    pooling: Floats
    bins: Floats

    def part(self, which: slice) -> TablePool:
        """Some of the tables."""
        return TablePool(self.rows[which], self.pooling[which], self.bins[which])


@cache
def metasyn_pool() -> TablePool:
    """All 856 tables, in random order: the same in every task of every suite."""
    rng = np.random.default_rng(_POOL_SEED)
    # Quantiles in random order instead of random draws: with so few tables, draws would miss the moments.
    uniform = (np.arange(POOL_TABLES) + 0.5) / POOL_TABLES
    rows = np.maximum(np.round(MOST_ROWS * uniform**_ROWS_POWER), 1.0)
    rows[-1] = MOST_ROWS
    normal = np.array([NormalDist().inv_cdf(u) for u in uniform])
    pooling = np.minimum(np.exp(_POOLING_MU + _POOLING_SIGMA * normal), MOST_POOLING)
    return TablePool(rng.permutation(rows), rng.permutation(pooling), _bins(rng))


def metasyn_split(split: Literal["train", "test"]) -> TablePool:
    """One half of the pool: no table is in both."""
    half = POOL_TABLES // 2
    return metasyn_pool().part(slice(None, half) if split == "train" else slice(half, None))


def _bins(rng: np.random.Generator) -> Floats:
    """Access histograms float[T, 17] whose columns have the published moments, as closely as rows of sum 1 can."""
    mean, sd = np.array(BIN_MEANS) / sum(BIN_MEANS), np.array(BIN_SDS)
    shape = (mean / sd) ** 2
    bins = rng.gamma(shape, mean / shape, (POOL_TABLES, ACCESS_BINS))
    for _ in range(_PROJECTIONS):
        bins = np.maximum(mean + (bins - bins.mean(axis=0)) * (sd / bins.std(axis=0)), 0.0)
        bins /= bins.sum(axis=1, keepdims=True)
    return bins


def metasyn_task(
    name: str, rng: np.random.Generator, tables: int, devices: int, types: Sequence[str], pool: TablePool
) -> SpecDict:
    """A task of tables drawn from a pool, each with a dim of 16 or 32.

    No table is drawn twice, unless there are more in the task than in the pool.
    """
    repeats = -(-tables // len(pool.rows))
    drawn = np.concatenate([rng.permutation(len(pool.rows)) for _ in range(repeats)])[:tables]
    return _spec(
        name,
        [
            {
                "name": f"t{number:03}",
                "rows": int(pool.rows[which]),
                "dim": int(rng.choice([16, 32])),
                "pooling": round(float(pool.pooling[which]), 3),
                "access": {"bins": pool.bins[which].tolist()},
                "sharding": list(types),
            }
            for number, which in enumerate(drawn)
        ],
        _cluster("v100-16gb", devices),
    )


def metasyn(seed: int) -> Iterator[SpecDict]:
    """Twenty tasks of 80 test tables on 8 devices, table-wise: AutoShard's main setting."""
    pool = metasyn_split("test")
    for number in range(20):
        rng = np.random.default_rng([seed, 0, number])
        yield metasyn_task(f"metasyn-{number:02}", rng, 80, 8, ["table_wise"], pool)


def metasyn_varied(seed: int) -> Iterator[SpecDict]:
    """Fifty tasks of 20 to 800 test tables on 4 to 80 devices, table-wise."""
    return _varied("varied", seed, 1, SHARDING_TYPES[:1])


def metasyn_types(seed: int) -> Iterator[SpecDict]:
    """The same sizes with every sharding type allowed."""
    return _varied("types", seed, 2, SHARDING_TYPES)


def _varied(name: str, seed: int, which: int, types: Sequence[str]) -> Iterator[SpecDict]:
    pool = metasyn_split("test")
    for number in range(50):
        tables, devices = VARIED[number % len(VARIED)]
        rng = np.random.default_rng([seed, which, number])
        yield metasyn_task(f"{name}-{number:02}-{tables}x{devices}", rng, tables, devices, types, pool)


# --- Problems that are hard in other ways -----------------------------------------------------------------------------


def large(seed: int) -> Iterator[SpecDict]:
    """1,000 tables on 1,024 devices of 128 hosts."""
    rng = np.random.default_rng([seed, 3])
    tables = _random_tables(rng, 1000, dims=(16, 32, 64, 128, 256), most_rows=100_000_000)
    yield _spec("large", tables, _cluster("h100-80gb", 1024), global_batch=1 << 20)


_FILLS = (0.95, 0.97, 0.98, 0.99, 0.995)


def tight(seed: int) -> Iterator[SpecDict]:
    """Twenty problems made from a packing that takes 95 to 99.5 % of the memory: one placement exists at least."""
    for number in range(20):
        fill, mixed = _FILLS[number % len(_FILLS)], number >= 10
        rng = np.random.default_rng([seed, 4, number])
        kind = "mixed" if mixed else "tables"
        yield packed(f"tight-{kind}-{number:02}-{fill:.1%}", rng, fill, mixed=mixed)[0]


def packed(name: str, rng: np.random.Generator, fill: float, *, mixed: bool) -> tuple[SpecDict, dict[str, list[int]]]:
    """A problem and a placement that takes a share of the memory of every device, or a little less.

    Args:
        name: of the problem.
        rng: of every random choice.
        fill: share of its memory that a device holds in that placement.
        mixed: whether some tables are too large for one device: one is row-wise, others have two column blocks.

    Returns:
        The spec, and for each table the ranks that hold it in the known placement.
    """
    devices, memory, batch = int(rng.choice([4, 8, 16])), 2 * 10**9, 8192
    room = np.full(devices, int(fill * memory))
    tables: list[tuple[SpecDict, list[int]]] = []

    def add(size: float, dim: int, ranks: list[int], sharding: list[str]) -> None:
        """Add a table that takes so many bytes of each of its ranks, or a little less."""
        by_rows = len(ranks) if sharding == ["row_wise"] else 1
        columns = dim if by_rows > 1 else dim // len(ranks)
        pooling = round(min(float(rng.lognormal(1.0, 1.0)), 50.0), 2)
        shard: dict[str, Any] = {
            **{"weights": "fp32", "outputs": "fp32", "optimizer": "rowwise_adagrad"},
            **{"dim": columns, "bags": batch, "pooling": pooling / by_rows},
        }
        beside, with_row = (int(shard_bytes(rows, **shard)) for rows in (0, 1))
        rows = int(size - beside) // (with_row - beside)
        room[ranks] -= int(shard_bytes(rows, **shard))
        entry = {"rows": rows * by_rows, "dim": dim, "pooling": pooling, "sharding": sharding}
        tables.append((entry, ranks))

    if mixed:
        add(0.15 * memory, 64, list(range(devices)), ["row_wise"])
        for first in range(0, devices, 2):
            add(rng.uniform(0.51, 0.6) * memory, 128, [first, first + 1], ["table_wise", "column_wise"])
    for device in range(devices):
        for size in rng.dirichlet(np.full(int(rng.integers(2, 6)), 10.0)) * room[device]:
            add(size, int(rng.choice([16, 32, 64])), [device], ["table_wise"])
    order = rng.permutation(len(tables))  # so that names say nothing of the placement
    named = {f"t{number:03}": tables[which] for number, which in enumerate(order)}
    cluster = _cluster("a100-40gb", devices) | {"memory": f"{memory}B", "reserve": "0%"}
    spec = _spec(name, [{"name": n} | entry for n, (entry, _) in named.items()], cluster, global_batch=batch)
    return spec, {n: ranks for n, (_, ranks) in named.items()}


def few_huge(seed: int) -> Iterator[SpecDict]:
    """Ten problems of five to eight tables that are larger than most devices, and ten small ones."""
    for number in range(10):
        rng = np.random.default_rng([seed, 5, number])
        huge = [
            {
                "name": f"huge{i}",
                "rows": int(rng.uniform(35e9, 60e9)) // (128 * 4),
                "dim": 128,
                "pooling": float(rng.choice([1.0, 5.0, 20.0])),
                "access": {"zipf": 1.05},
            }
            for i in range(int(rng.integers(5, 9)))
        ]
        small = _random_tables(rng, 10, dims=(16, 64), most_rows=1_000_000)
        cluster = _cluster("a100-40gb", 16) | {"host": [{"hosts": [1], "device": "a100-80gb"}]}
        yield _spec(f"few-huge-{number}", huge + small, cluster)


def mixed(seed: int) -> Iterator[SpecDict]:
    """Ten problems on two hosts of one kind of device and two of another, some ranks with less memory."""
    for number in range(10):
        rng = np.random.default_rng([seed, 6, number])
        cluster = _cluster("h100-80gb", 32) | {
            "host": [{"hosts": [2, 3], "device": "a100-40gb"}],
            "rank": [{"ranks": sorted(map(int, rng.choice(32, 4, replace=False))), "memory": "24GB"}],
        }
        tables = _random_tables(rng, 120, dims=(16, 32, 64, 128), most_rows=40_000_000)
        yield _spec(f"mixed-{number}", tables, cluster)


# --- All of them ------------------------------------------------------------------------------------------------------


SUITES: dict[str, Callable[[int], Iterator[SpecDict]]] = {
    "dlrm-dcnv2": dlrm_dcnv2,
    "metasyn": metasyn,
    "metasyn-varied": metasyn_varied,
    "metasyn-types": metasyn_types,
    "large": large,
    "tight": tight,
    "few-huge": few_huge,
    "mixed": mixed,
}
"""Suites by name; each yields the specs of a seed. The first line of its docstring says what they are."""


def problems(suite: str, seed: int = 0, count: int | None = None) -> list[SpecDict]:
    """The specs of a suite, all or the first `count`.

    Raises:
        KeyError: no such suite.
    """
    return list(islice(SUITES[suite](seed), count))


def _random_tables(rng: np.random.Generator, count: int, *, dims: Sequence[int], most_rows: int) -> list[SpecDict]:
    """Tables of sizes over orders of magnitude, skewed pooling and accesses."""
    return [
        {
            "name": f"t{number:04}",
            "rows": int(np.exp(rng.uniform(np.log(1000), np.log(most_rows)))),
            "dim": int(rng.choice(dims)),
            "pooling": round(float(rng.lognormal(1.5, 1.0)), 3),
            "access": {"zipf": round(float(rng.uniform(0.6, 1.3)), 3)},
        }
        for number in range(count)
    ]


def _cluster(device: str, devices: int) -> SpecDict:
    local = min(devices, 8)
    return {"device": device, "hosts": devices // local, "devices_per_host": local}


def _spec(name: str, tables: Sequence[SpecDict], cluster: SpecDict, *, global_batch: int = 65_536) -> SpecDict:
    return {
        "format": 1,
        "model": {"name": name, "module": "ebc", "global_batch": global_batch},
        "cluster": cluster,
        "table": list(tables),
    }

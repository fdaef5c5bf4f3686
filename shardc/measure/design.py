"""The design of a measuring campaign: which sets of tables it measures, chosen to fill the space of what models have.

What describes a set as a whole (number of tables, batch, where its tables lie in every range and how widely they
scatter) is a point of a scrambled Sobol sequence, so any first part of a campaign covers all combinations evenly. The
tables of a set are spread over its ranges as a Latin hypercube. A set that would take too long or too much memory is
shrunk, not drawn again: drawing again would thin out the space near the limits.

Set number i depends only on the seed and on i, and every set has tables of its own: no table of a held-out set is ever
seen in training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from shardc.measure.workload import Load, Workload
from shardc.problem import BYTES_PER_ELEMENT, Floats
from shardc.spec import Bins, Zipf

DESIGN = 2
"""Of the design: raised when it draws other sets, so that two designs are not mixed in one campaign."""

REPEAT_EVERY = 20
_HELD_OUT = 5  # every fifth set
FIRST_OWN = 10**9
"""Sets that are not of the design, such as those of users' own plans, are numbered from here on."""

# Mean and standard deviation of the 17 bins over the tables of the public access dataset (AutoShard, table 4).
_BINS_MEAN = np.array(
    [.225, .104, .126, .106, .082, .056, .039, .033, .031, .027, .027, .022, .019, .015, .006, .008, .033]
)  # fmt: skip
_BINS_STD = np.array(
    [.227, .069, .092, .076, .059, .051, .048, .057, .067, .064, .074, .069, .070, .081, .043, .051, .123]
)  # fmt: skip
_DIM = (4, 512)
_POOLING = (0.05, 200.0)
_ROWS = 3  # fewest rows of a table
_ZIPF = 1.6  # largest exponent
_KINDS = [(weights, optimizer) for weights in ("fp32", "fp32", "fp16") for optimizer in ("sgd", "rowwise_adagrad")]
_COORDINATES = ("tables", "batch", "rows", "dim", "pooling", "skew", "scatter", "kind", "load", "outputs", "weights")
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Range:
    """Sizes that a campaign covers, chosen for what the device can run in a few dozen milliseconds.

    Attributes:
        tables: most tables in a set.
        batch: smallest and largest batch.
        rows: most rows of a table.
        lookups: most lookups of a set in one step.
        gathered_bytes: most bytes that a set reads from embedding rows, and that it writes as outputs, in one step.
        weight_bytes: most bytes of weights of a set.
    """

    tables: int
    batch: tuple[int, int]
    rows: int
    lookups: float
    gathered_bytes: float
    weight_bytes: float


CPU_RANGE = Range(64, (64, 4096), 4_000_000, 6e5, 6e7, 2**29)
CUDA_RANGE = Range(64, (1024, 65536), 40_000_000, 1.5e8, 3e10, 40 * 2**30)


def is_repeat(index: int) -> bool:
    """Whether this set was measured before: repeats tell the noise and take no part in training."""
    return index % REPEAT_EVERY == REPEAT_EVERY - 1 and not is_own(index)


def is_held_out(index: int) -> bool:
    """Whether a set is for testing only."""
    return index % _HELD_OUT == 0 and not is_own(index)


def is_own(index: int) -> bool:
    """Whether a set is not of the design: what a user's own plan puts on a device."""
    return index >= FIRST_OWN


def repeated(index: int) -> int:
    """The set that a repeat measures again: one from the middle of the campaign so far."""
    middle = index // 2
    return middle - is_repeat(middle)


def draw_workload(seed: int, index: int, sizes: Range) -> Workload:
    """The set of tables that a campaign measures as its number `index`."""
    if is_repeat(index):
        return draw_workload(seed, repeated(index), sizes)
    at = dict(zip(_COORDINATES, _sobol(seed, index // _BLOCK)[index % _BLOCK].tolist(), strict=True))
    rng = np.random.default_rng([seed, index])
    count = int((sizes.tables + 1) ** at["tables"])
    weights, optimizer = _KINDS[int(at["kind"] * len(_KINDS))]
    rows, dim, pooling, skew = (
        at[name] + at["scatter"] * (_stratified(count, rng) - at[name]) for name in ("rows", "dim", "pooling", "skew")
    )
    tables = tuple(
        Load(
            rows=round(_between((_ROWS, sizes.rows), rows[t])),
            dim=_dim(dim[t], rng),
            pooling=round(_between(_POOLING, pooling[t]), 3),
            access=_access(skew[t], rng),
        )
        for t in range(count)
    )
    whole = Workload(tables, round(_between(sizes.batch, at["batch"])), weights, optimizer)
    # A limit's own coordinate says how far below the limit a set is shrunk: else many would lie just on it.
    return _shrunk(whole, sizes, room={name: 0.1 ** at[name] for name in ("load", "outputs", "weights")})


@lru_cache(maxsize=4)
def _sobol(seed: int, block: int) -> Floats:
    """Points number block x 1024 and following of the sequence, float[1024, 11] in (0, 1)."""
    import torch

    engine = torch.quasirandom.SobolEngine(len(_COORDINATES), scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    engine.fast_forward(block * _BLOCK)  # type: ignore[no-untyped-call]
    points = engine.draw(_BLOCK, dtype=torch.float64)
    return np.asarray(points.clamp(1e-9, 1 - 1e-9).numpy())


def _stratified(count: int, rng: np.random.Generator) -> Floats:
    """One coordinate of a Latin hypercube: `count` values in (0, 1), one in each of as many equal parts."""
    return np.asarray((rng.permutation(count) + rng.random(count)) / count)


def _between(limits: tuple[float, float], share: float) -> float:
    """The value that lies `share` of the way between two limits, on a logarithmic scale."""
    low, high = limits
    return float(low * (high / low) ** share)


def _dim(share: float, rng: np.random.Generator) -> int:
    """Three of four dims are powers of two; the others any multiple of four."""
    dim = _between(_DIM, share)
    return int(2 ** round(np.log2(dim))) if rng.random() < 0.75 else 4 * round(dim / 4)


def _access(skew: float, rng: np.random.Generator) -> Zipf | Bins:
    if rng.random() < 0.7:
        return Zipf(round(float(_ZIPF * skew), 3))
    shape = (_BINS_MEAN / _BINS_STD) ** 2
    shares = rng.gamma(shape, _BINS_MEAN / shape)
    return Bins(tuple(map(float, (shares / shares.sum()).round(4))))


def _shrunk(workload: Workload, sizes: Range, room: dict[str, float]) -> Workload:
    """The workload with a smaller batch, pooling and rows, where it is beyond the limits of the range."""
    outputs = sum(t.dim for t in workload.tables) * 4.0
    batch = workload.batch
    if batch * outputs > sizes.gathered_bytes / 2:
        batch = max(sizes.batch[0], int(sizes.gathered_bytes / 2 * room["outputs"] / outputs))
    lookups = sum(t.pooling for t in workload.tables) * batch
    gathered = sum(t.pooling * t.dim for t in workload.tables) * batch * 4.0
    excess = max(lookups / sizes.lookups, gathered / sizes.gathered_bytes)
    fewer = room["load"] / excess if excess > 1 else 1.0
    full = sum(t.rows * t.dim for t in workload.tables) * BYTES_PER_ELEMENT[workload.weights] / sizes.weight_bytes
    less = room["weights"] / full if full > 1 else 1.0
    tables = tuple(
        replace(t, rows=max(_ROWS, int(t.rows * less)), pooling=max(_POOLING[0], round(t.pooling * fewer, 3)))
        for t in workload.tables
    )
    return replace(workload, tables=tables, batch=batch)

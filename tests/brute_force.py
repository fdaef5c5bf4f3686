"""Small random problems with everything a spec can ask for, and their best placements by trying all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from shardc.cost.fused import BASES, FEATURES, FusedCost
from shardc.cost.model import ComputeCost, MixedCost, StepCost, step_cost
from shardc.cost.roofline import Roofline
from shardc.cost.torchrec import TorchRecCost, torchrec_cost
from shardc.diagnostics import DiagnosticError
from shardc.judge import Judge
from shardc.passes.lower import lower
from shardc.pipeline import devices_of
from shardc.problem import Placement, Problem, ShardingType
from shardc.spec import SHARDING_TYPES, parse_spec

_AT_ONCE = 1 << 14  # placements that are scored in one call
_MOST = 100_000  # placements of a problem that are worth trying


def random_tables(rng: np.random.Generator, count: int, devices: int) -> list[dict]:
    """Tables of even and uneven widths, some pinned, grouped, kept apart or limited to some sharding types."""
    tables = []
    for index in range(count):
        table = {
            "name": f"t{index}",
            "rows": int(np.exp(rng.uniform(0, 15))),
            "dim": int(rng.choice([4, 8, 12, 20, 64, 128])),
            "pooling": float(rng.choice([0.1, 1.0, 5.0, 40.0])),
            "access": {"zipf": float(rng.choice([0.0, 1.0, 1.6]))},
        }
        if rng.random() < 0.6:
            table["sharding"] = [t for t in SHARDING_TYPES if rng.random() < 0.5] or ["table_wise"]
        if rng.random() < 0.2:
            table["pin"] = sorted(rng.choice(devices, int(rng.integers(1, devices + 1)), replace=False).tolist())
        if rng.random() < 0.15:
            table |= {"group": "together", "sharding": ["table_wise"]}
        elif rng.random() < 0.15:
            table["apart"] = "hot"
        tables.append(table)
    return tables


def random_cluster(rng: np.random.Generator, memory: float) -> dict:
    """Two hosts of two devices, or a few other shapes; hosts that differ, and ranks with a memory of their own.

    Args:
        rng: of every random choice.
        memory: bytes of a device, about.
    """
    hosts, local = [(2, 2), (2, 2), (2, 2), (1, 3), (3, 1), (2, 1)][rng.integers(6)]

    def size() -> str:
        return f"{int(memory * np.exp(rng.uniform(-0.5, 0.5))) + 1}B"

    cluster = {
        "device": "a100-40gb",
        "hosts": hosts,
        "devices_per_host": local,
        "memory": size(),
        "reserve": "0%",
        "intra_host_bandwidth": f"{rng.choice([1, 300])}GB/s",
        "inter_host_bandwidth": f"{rng.choice([1, 25])}GB/s",
    }
    if hosts > 1 and rng.random() < 0.5:
        other: dict = {"hosts": [int(rng.integers(hosts))]}
        if rng.random() < 0.6:
            other["device"] = "h100-80gb"
        if rng.random() < 0.5:
            other["memory"] = size()
        if rng.random() < 0.5:
            other["inter_host_bandwidth"] = "5GB/s"
        if rng.random() < 0.3:
            other["intra_host_bandwidth"] = "20GB/s"
        cluster["host"] = [other]
    if rng.random() < 0.4:
        ranks = rng.choice(hosts * local, int(rng.integers(1, 3)), replace=False)
        cluster["rank"] = [{"ranks": [int(rank)], "memory": size()} for rank in ranks]
    return cluster


def random_spec(rng: np.random.Generator) -> dict:
    """A spec of up to four tables, which may contradict itself."""
    tables = random_tables(rng, int(rng.integers(1, 5)), devices=2)
    whole = sum(4.0 * table["rows"] * table["dim"] for table in tables)
    # Memory binds, is large enough for all tables on one device, or anything.
    memory = [max(whole * rng.uniform(0.2, 0.7), 2e4), 10 * whole + 1e9, np.exp(rng.uniform(17, 24))][rng.integers(3)]
    return {
        "format": 1,
        "model": {
            "name": "m",
            "module": "ebc",
            "global_batch": int(rng.choice([1, 100, 20_000])),
            "optimizer": str(rng.choice(["sgd", "rowwise_adagrad", "adam"])),
        },
        "cluster": random_cluster(rng, float(memory)),
        "table": tables,
    }


def problem_of(spec: dict) -> Problem | None:
    """The problem of a spec; None if the spec contradicts itself or a table fits nowhere."""
    try:
        loaded = parse_spec(spec)
        return lower(loaded, devices_of(loaded))
    except DiagnosticError as error:
        assert {d.code for d in error.diagnostics} <= {"SH106", "SH201"}
        return None


def with_host_memory(rng: np.random.Generator, spec: dict) -> dict:
    """The spec with hosts whose memory some of its tables may take, or have to."""
    whole = sum(4.0 * table["rows"] * table["dim"] for table in spec["table"])
    cluster = spec["cluster"] | {"host_memory": f"{int(whole * np.exp(rng.uniform(-1, 2))) + 1000}B"}
    if rng.random() < 0.3:
        others = cluster.get("host", [{"hosts": [0]}])
        cluster["host"] = [others[0] | {"host_memory": f"{int(whole * rng.uniform(0.2, 2)) + 1000}B"}]
    kernels: list[list[str]] = [["fused"], ["fused", "fused_uvm_caching"], ["fused_uvm_caching"]]
    tables = [
        table | {"kernels": kernels[rng.choice(3, p=[0.2, 0.6, 0.2])], "cache_ratio": float(rng.uniform(0.01, 0.9))}
        for table in spec["table"][:3]
    ]
    return spec | {"cluster": cluster, "table": tables}


def random_problem(rng: np.random.Generator, *, cached: bool = False) -> Problem | None:
    """The problem of a random spec, in which tables may be in host memory or not; None if there is none."""
    spec = random_spec(rng)
    return problem_of(with_host_memory(rng, spec) if cached else spec)


def random_weights(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], int]:
    """Arbitrary weights that keep the constraints of a learned cost, and how many models they are of."""
    k, groups, pieces, members = (int(rng.integers(1, 5)) for _ in range(4))
    weights = {
        "mean": rng.normal(5, 3, FEATURES),
        "std": rng.uniform(1, 5, FEATURES),
        "encoder.0.weight": rng.normal(0, 0.5, (members, 6, FEATURES)),
        "encoder.0.bias": rng.normal(0, 1, (members, 6)),
        "encoder.1.weight": rng.normal(0, 0.5, (members, 6, 6)),
        "encoder.1.bias": rng.normal(0, 1, (members, 6)),
        "encoder.2.weight": rng.normal(0, 0.5, (members, 2 * k, 6)),
        "encoder.2.bias": rng.normal(0, 1, (members, 2 * k)),
        "scale": rng.exponential(1, (members, 2, BASES)),
        "pieces": rng.exponential(1, (members, 2, groups, pieces, k)),
        "offsets": rng.normal(0, 3, (members, 2, groups, pieces)),
        "fixed": rng.exponential(1, (members, 4, 2)),
    }
    return weights, members


def random_cost(rng: np.random.Generator, problem: Problem) -> StepCost | MixedCost | TorchRecCost:
    """Data-sheet figures, learned weights or TorchRec's estimates; figures and weights of each kind of hosts."""
    if rng.random() < 0.15:
        return torchrec_cost(problem)

    def compute() -> ComputeCost:
        if rng.random() < 0.6:
            return Roofline(float(np.exp(rng.uniform(22, 29))), 4e7)
        weights, members = random_weights(rng)
        return FusedCost(weights, kind=0, members=members)

    return step_cost([compute() for _ in problem.cluster.kinds], problem)


def ways_of(problem: Problem, block: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Every option of a block on all places that pins and hosts leave it."""
    for option in problem.options_of(block):
        size = int(problem.site_size[problem.option_site[option]])
        counts = np.unique(problem.units_of(option), return_counts=True)[1].tolist()
        for places in _spread(counts, frozenset(range(problem.cluster.devices // size))):
            devices = [place * size + offset for place in places for offset in range(size)]
            hosts = {device // problem.cluster.devices_per_host for device in devices}
            one_host = problem.option_type[option] in (ShardingType.TABLE_COLUMN_WISE, ShardingType.TABLE_ROW_WISE)
            if problem.allowed[block, devices].all() and (len(hosts) == 1 or not one_host):
                yield option, places


def _spread(counts: list[int], places: frozenset[int]) -> Iterator[tuple[int, ...]]:
    """All ways to put units on distinct places, so many of each kind."""
    if not counts:
        yield ()
        return
    for chosen in itertools.combinations(sorted(places), counts[0]):
        for others in _spread(counts[1:], places - set(chosen)):
            yield chosen + others


def best_of_all(judge: Judge) -> tuple[float, Placement | None] | None:
    """The best feasible placement and its step time, infinite if there is none; None if there are too many to try."""
    problem = judge.problem
    ways = [list(ways_of(problem, block)) for block in range(len(problem.blocks))]
    if np.prod([float(len(of_block)) for of_block in ways]) > _MOST:
        return None
    counts = [len(of_block) for of_block in ways]
    if not all(counts):
        return np.inf, None
    loads, memory, held = [], [], []
    for block, of_block in enumerate(ways):
        alone = [_alone(judge, option, places) for option, places in of_block]
        loads.append(np.stack([z for z, _, _ in alone]))
        memory.append(np.stack([bytes for _, bytes, _ in alone]))
        held.append(np.stack([here for _, _, here in alone]))
        assert len(problem.labels[block]) <= 2
    best_ms, best = np.inf, None
    for start in range(0, int(np.prod(counts)), _AT_ONCE):
        numbers = np.arange(start, min(start + _AT_ONCE, int(np.prod(counts))))
        which = np.unravel_index(numbers, counts)
        fits = (sum(m[w] for m, w in zip(memory, which, strict=True)) <= problem.cluster.memory_limit).all(axis=(1, 2))
        for label in {label for labels in problem.labels for label in labels[1:]}:
            apart = [b for b, labels in enumerate(problem.labels) if label in labels]
            fits &= (sum(held[b][which[b]].astype(int) for b in apart) <= 1).all(axis=1)
        if not fits.any():
            continue
        z = sum(of_block[w[fits]] for of_block, w in zip(loads, which, strict=True))
        ms = judge.step_ms(z)
        if ms.min() < best_ms:
            best_ms, number = float(ms.min()), np.flatnonzero(fits)[ms.argmin()]
            best = Placement(*zip(*(ways[b][w[number]] for b, w in enumerate(which)), strict=True))
    return best_ms, best


def _alone(judge: Judge, option: int, places: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Loads float[D, K], bytes int[M, D] and presence bool[D] of one block."""
    problem = judge.problem
    size, local = int(problem.site_size[problem.option_site[option]]), problem.cluster.devices_per_host
    z = np.zeros((problem.cluster.devices, judge.latents.shape[2]))
    memory, held = np.zeros_like(problem.cluster.memory_limit), np.zeros(len(z), dtype=bool)
    for unit, place in zip(problem.units_of(option).tolist(), places, strict=True):
        for device in range(place * size, (place + 1) * size):
            z[device] += judge.latents[problem.cluster.host_kind[device // local], unit]
            memory[:, device] += problem.unit_memory[:, unit]
            held[device] = True
    return z, memory, held


def broken(problem: Problem, placement: Placement) -> list[str]:
    """Every constraint that a placement breaks, worked out from the problem alone and not by the judge."""
    found, local = [], problem.cluster.devices_per_host
    memory, devices_of_label = [[0] * problem.cluster.devices for _ in problem.unit_memory], {}
    for block, (option, places) in enumerate(zip(placement.option, placement.places, strict=True)):
        type, units = problem.option_type[option], problem.units_of(option).tolist()
        if option not in problem.options_of(block):
            found.append(f"option {option} is not one of block {block}")
        if not len(units) == len(places) == len(set(places)):
            found.append(f"block {block} has {len(units)} units at {places}")
        used = set()
        for unit, place in zip(units, places, strict=False):
            if type in ("row_wise", "data_parallel"):
                devices = range(problem.cluster.devices)
            elif type in ("table_row_wise", "grid_shard"):
                devices = range(place * local, (place + 1) * local)
            else:
                devices = [place]
            for device in devices:
                for kind, sizes in enumerate(problem.unit_memory.tolist()):
                    memory[kind][device] += sizes[unit]
            used.update(devices)
        if not problem.allowed[block, sorted(used)].all():
            found.append(f"block {block} is on {sorted(used)}, against its pin")
        if type in ("table_column_wise", "table_row_wise") and len({device // local for device in used}) > 1:
            found.append(f"block {block} is {type} on {sorted(used)}, of several hosts")
        for label in problem.labels[block][1:]:
            others = devices_of_label.setdefault(label, set())
            if others & used:
                found.append(f"block {block} shares a device with one it is kept apart from")
            others |= used
    for kind, limits in enumerate(problem.cluster.memory_limit.tolist()):
        over = [d for d, (bytes, limit) in enumerate(zip(memory[kind], limits, strict=True)) if bytes > limit]
        found += [f"{memory[kind][d]} bytes of memory {kind} on device {d} of {limits[d]}" for d in over]
    return found

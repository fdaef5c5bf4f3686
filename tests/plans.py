"""Small plans on four devices, for what compares and shows them."""

from __future__ import annotations

from shardc.plan import Plan


def whole(rank: int, rows: int = 1000, dim: int = 16) -> dict:
    return sharded("table_wise", [(rank, 0, 0, rows, dim)])


def sharded(kind: str, pieces: list[tuple[int, int, int, int, int]], **members: object) -> dict:
    return {
        "sharding_type": kind,
        "compute_kernel": "fused",
        "ranks": [piece[0] for piece in pieces],
        "shards": [
            {
                "placement": f"rank:{rank}/cuda:{rank % 4}",
                "shard_offsets": [row, column],
                "shard_sizes": [rows, columns],
            }
            for rank, row, column, rows, columns in pieces
        ],
        **members,
    }


def replicated(rows: int | None = 1000, dim: int = 16, devices: int = 4) -> dict:
    placed = {"sharding_type": "data_parallel", "compute_kernel": "dense", "ranks": list(range(devices))}
    return placed if rows is None else placed | {"shape": [rows, dim]}


def plan(tables: dict[str, dict], *, step_ms: float = 1.0, ms: tuple[float, ...] = (0.5,) * 4, **members) -> Plan:
    """A plan on four devices, or as many as times are given of."""
    memory = members.pop("memory", [10_000] * len(ms))
    document = {
        "format": 1,
        "model": {
            "name": "m",
            "module": "ebc",
            "global_batch": 512,
            "optimizer": "rowwise_adagrad",
            "weights": "fp32",
            "outputs": "fp32",
        },
        "cluster": {"device": "h100-80gb", "hosts": 1, "devices_per_host": len(ms)},
        "digests": {"spec": "sha256:0011223344", "profile": "sha256:5566778899"},
        "tool": {"name": "shardc", "version": "0.1.0", "seed": 0},
        "plan": {"ebc": tables},
        "score": {
            "step_time_ms": step_ms,
            "phases": {"forward": step_ms},
            "balance": 0.9,
            "devices": [
                {
                    "rank": rank,
                    "forward_ms": time,
                    "backward_ms": time,
                    "memory_bytes": memory[rank],
                    "memory_limit_bytes": 10**9,
                }
                for rank, time in enumerate(ms)
            ],
        },
        "bound": None,
        "chosen": {"strategy": "greedy", "reason": "no_policy"},
        "candidates": [],
    }
    for path, value in members.items():
        section, name = path.split("__")
        document[section][name] = value
    return Plan.model_validate(document)

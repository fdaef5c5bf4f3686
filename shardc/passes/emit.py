"""emit: a chosen placement becomes the plan document, in exactly the shape that TorchRec runs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import shardc
from shardc.cost.model import PhasedCost
from shardc.passes.place import Choice
from shardc.passes.verify import device_memory, plan_cluster
from shardc.plan import (
    Bound,
    Candidate,
    Chosen,
    DeviceScore,
    Digests,
    Plan,
    PlanMigration,
    PlanModel,
    PlanShard,
    Score,
    TablePlan,
    Tool,
)
from shardc.problem import Ints, Kernel, Memory, Problem, ShardingType
from shardc.spec import LoadedSpec


def emit(
    loaded: LoadedSpec,
    choice: Choice,
    *,
    digests: Digests,
    seed: int,
    p90_ms: float | None = None,
    migration: PlanMigration | None = None,
) -> Plan:
    """Write a choice down.

    Args:
        loaded: the spec.
        choice: the outcome of the placement pass.
        digests: of what the plan is compiled from.
        seed: the seed that the placement pass ran with.
        p90_ms: the placement's step time by pessimistic costs, if there are any.
        migration: what moves from the plan's base, if it has one.
    """
    problem, spec = choice.judge.problem, loaded.spec
    cluster = problem.cluster
    step_time = choice.judgement.step_time_ms
    least = choice.bound.step_time_ms if choice.bound else 0.0
    bound = Bound(step_time_ms=least, gap=max(0.0, step_time / least - 1.0)) if least > 0 else None
    plan = Plan(
        format=1,
        model=PlanModel(
            name=spec.model.name,
            module=spec.model.module,
            global_batch=spec.model.global_batch,
            optimizer=spec.model.optimizer,
            weights=spec.model.weights,
            outputs=spec.model.outputs,
        ),
        cluster=plan_cluster(cluster),
        digests=digests,
        tool=Tool(name="shardc", version=shardc.__version__, seed=seed),
        plan={spec.model.module: table_plans(choice)},
        score=_score(choice, np.zeros((len(Memory), cluster.devices), dtype=np.int64), p90_ms),
        bound=bound,
        chosen=Chosen(strategy=choice.strategy, reason=choice.why),
        candidates=tuple(
            Candidate(
                strategy=proposal.strategy,
                step_time_ms=proposal.step_time_ms if proposal.placement else None,
                feasible=proposal.placement is not None,
                reason=outcome,
            )
            for proposal, outcome in choice.candidates
        ),
        migration=migration,
    )
    # The search charges a short last row-wise block as a full one; what is stated is counted from the shards.
    return plan.model_copy(update={"score": _score(choice, device_memory(plan, loaded), p90_ms)})


def table_plans(choice: Choice) -> dict[str, TablePlan]:
    """How each table is sharded in a choice, by its name."""
    problem, placement = choice.judge.problem, choice.placement
    plans = {}
    for members, option, places in zip(problem.blocks, placement.option, placement.places, strict=True):
        for table in members:
            plans[problem.tables[table].name] = _table(problem, table, option, places)
    return plans


def _table(problem: Problem, table: int, option: int, places: tuple[int, ...]) -> TablePlan:
    type, world = problem.option_type[option], problem.cluster.devices
    if type is ShardingType.DATA_PARALLEL:
        shape = (problem.tables[table].rows, problem.tables[table].dim)
        return TablePlan.model_validate(
            {"sharding_type": str(type), "compute_kernel": "dense", "ranks": range(world), "shape": shape}
        )
    shards = tuple(_shards(problem, table, option, places))
    block = problem.blocks[problem.option_block[option]]
    cached = problem.cached_of(option)[block.index(table)]
    kernel = Kernel.FUSED if cached == 1.0 else Kernel.FUSED_UVM_CACHING
    return TablePlan.model_validate(
        {
            "sharding_type": str(type),
            "compute_kernel": str(kernel),
            "cache_params": None if kernel is Kernel.FUSED else {"load_factor": cached},
            "ranks": [shard.rank for shard in shards],
            "shards": shards,
        }
    )


def _shards(problem: Problem, table: int, option: int, places: tuple[int, ...]) -> Iterator[PlanShard]:
    """The pieces of a table, in the order of columns, then of ranks."""
    for rank, row, column, rows, columns in problem.pieces(table, option, places).tolist():
        yield PlanShard(shard_offsets=(row, column), shard_sizes=(rows, columns), placement=_placement(problem, rank))


def _placement(problem: Problem, rank: int) -> str:
    if problem.cluster.device_type == "cpu":
        return f"rank:{rank}/cpu"
    return f"rank:{rank}/cuda:{rank % problem.cluster.devices_per_host}"


def _score(choice: Choice, memory: Ints, p90_ms: float | None) -> Score:
    judge, z = choice.judge, choice.judgement.z
    phases, passes = {"step": choice.judgement.step_time_ms}, None
    compute = judge.device_ms(z)  # [D]
    if isinstance(judge.cost, PhasedCost):
        phases = dict(zip(judge.cost.phases, judge.phase_ms(z).max(axis=0).tolist(), strict=True))
        phases = {name: ms for name, ms in phases.items() if ms > 0}
        passes = judge.rounded(judge.cost.passes(z))  # [D, 2]
        compute = passes.sum(axis=1)
    limits = judge.problem.cluster.memory_limit
    used = list(zip(("", "host_"), memory.tolist(), limits.tolist(), strict=False))
    return Score(
        step_time_ms=choice.judgement.step_time_ms,
        step_time_p90_ms=p90_ms,
        phases=phases,
        balance=float(compute.min() / compute.max()) if compute.max() > 0 else 1.0,
        devices=tuple(
            DeviceScore(
                rank=rank,
                forward_ms=None if passes is None else float(passes[rank, 0]),
                backward_ms=None if passes is None else float(passes[rank, 1]),
                **{f"{kind}memory_bytes": bytes[rank] for kind, bytes, _ in used},
                **{f"{kind}memory_limit_bytes": limit[rank] for kind, _, limit in used},
            )
            for rank in range(len(z))
        ),
    )

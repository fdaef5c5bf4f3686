"""emit: a chosen placement becomes the plan document, in exactly the shape that TorchRec runs."""

from __future__ import annotations

import shardc
from shardc.cost.model import PhasedCost
from shardc.passes.place import Choice
from shardc.passes.verify import device_memory
from shardc.plan import (
    Bound,
    Candidate,
    Chosen,
    DeviceScore,
    Digests,
    Plan,
    PlanCluster,
    PlanModel,
    PlanShard,
    Score,
    TablePlan,
    Tool,
)
from shardc.problem import Problem, ShardingType, TableInfo
from shardc.spec import LoadedSpec


def emit(loaded: LoadedSpec, choice: Choice, *, digests: Digests, seed: int, p90_ms: float | None = None) -> Plan:
    """Write a choice down.

    Args:
        loaded: the spec.
        choice: the outcome of the placement pass.
        digests: of what the plan is compiled from.
        seed: the seed that the placement pass ran with.
        p90_ms: the placement's step time by pessimistic costs, if there are any.
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
        cluster=PlanCluster(device=cluster.device, hosts=cluster.hosts, devices_per_host=cluster.devices_per_host),
        digests=digests,
        tool=Tool(name="shardc", version=shardc.__version__, seed=seed),
        plan={spec.model.module: _tables(choice)},
        score=_score(choice, [0] * cluster.devices, p90_ms),
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
    )
    # The search charges a short last row-wise block as a full one; what is stated is counted from the shards.
    return plan.model_copy(update={"score": _score(choice, device_memory(plan, loaded), p90_ms)})


def _tables(choice: Choice) -> dict[str, TablePlan]:
    problem = choice.judge.problem
    plans = {}
    for block, members in enumerate(problem.blocks):
        type, devices = problem.option_type[choice.placement.option[block]], choice.placement.devices[block]
        for index in members:
            plans[problem.tables[index].name] = _table(problem, problem.tables[index], type, devices)
    return plans


def _table(problem: Problem, table: TableInfo, type: ShardingType, devices: tuple[int, ...]) -> TablePlan:
    world = problem.cluster.devices
    if type is ShardingType.DATA_PARALLEL:
        return TablePlan.model_validate({"sharding_type": str(type), "compute_kernel": "dense", "ranks": range(world)})
    if type is ShardingType.ROW_WISE:
        block = -(-table.rows // world)  # TorchRec: blocks of equal size in rank order, the last short or empty
        starts = [min(rank * block, table.rows) for rank in range(world + 1)]
        pieces = [(rank, (starts[rank], 0), (starts[rank + 1] - starts[rank], table.dim)) for rank in range(world)]
    else:
        width = table.dim // len(devices)
        pieces = [(rank, (0, i * width), (table.rows, width)) for i, rank in enumerate(devices)]
    shards = tuple(
        PlanShard(shard_offsets=offsets, shard_sizes=sizes, placement=_placement(problem, rank))
        for rank, offsets, sizes in pieces
    )
    ranks = [rank for rank, _, _ in pieces]
    return TablePlan.model_validate(
        {"sharding_type": str(type), "compute_kernel": "fused", "ranks": ranks, "shards": shards}
    )


def _placement(problem: Problem, rank: int) -> str:
    if problem.cluster.device_type == "cpu":
        return f"rank:{rank}/cpu"
    return f"rank:{rank}/cuda:{rank % problem.cluster.devices_per_host}"


def _score(choice: Choice, memory: list[int], p90_ms: float | None) -> Score:
    judge, z = choice.judge, choice.judgement.z
    phases, passes = {"step": choice.judgement.step_time_ms}, None
    compute = judge.device_ms(z)  # [D]
    if isinstance(judge.cost, PhasedCost):
        phases = dict(zip(judge.cost.phases, judge.phase_ms(z).max(axis=0).tolist(), strict=True))
        passes = judge.rounded(judge.cost.passes(z))  # [D, 2]
        compute = passes.sum(axis=1)
    limit = judge.problem.cluster.memory_limit
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
                memory_bytes=memory[rank],
                memory_limit_bytes=limit,
            )
            for rank in range(len(z))
        ),
    )

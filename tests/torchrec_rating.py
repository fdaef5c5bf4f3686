"""What TorchRec's own estimator makes of a plan, whoever made it."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn
from torchrec.distributed.planner import ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import get_partition_by_type
from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator
from torchrec.distributed.planner.types import Shard, ShardingOption
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.distributed.types import ModuleSharder, ShardingPlan


def rank_times(
    plan: ShardingPlan,
    model: nn.Module,
    sharders: Sequence[ModuleSharder],
    topology: Topology,
    constraints: Mapping[str, ParameterConstraints] | None,
    batch_size: int,
) -> np.ndarray:
    """Forward and backward ms of every rank, each with its communication, float[W, 2]; a step is the largest sum."""
    by_name = {sharder_name(sharder.module_type): sharder for sharder in sharders}
    limits = dict(constraints or {})
    options = []
    for path, tables in plan.plan.items():
        module = model.get_submodule(path)
        parameters = by_name[sharder_name(type(module))].shardable_parameters(module)
        for name, placed in tables.items():
            rows, dim = parameters[name].shape
            if placed.sharding_spec is None:
                shards = [Shard([rows, dim], [0, 0], rank=rank) for rank in placed.ranks]
            else:
                found = placed.sharding_spec.shards
                shards = [Shard(s.shard_sizes, s.shard_offsets, rank=s.placement.rank()) for s in found]
            given = limits.get(name, ParameterConstraints())
            options.append(
                ShardingOption(
                    name=name,
                    tensor=parameters[name],
                    module=(path, module),
                    input_lengths=given.pooling_factors,
                    batch_size=batch_size,
                    sharding_type=placed.sharding_type,
                    partition_by=get_partition_by_type(placed.sharding_type),
                    compute_kernel=placed.compute_kernel,
                    shards=shards,
                    cache_params=placed.cache_params,
                    output_dtype=placed.output_dtype,
                )
            )
    estimator = EmbeddingPerfEstimator(topology, constraints=limits)
    estimator.estimate(options, build_sharder_data_map(by_name))
    times = np.zeros((topology.world_size, 2))
    for option in options:
        for shard in option.shards:
            perf = shard.perf
            times[shard.rank] += (perf.fwd_compute + perf.fwd_comms, perf.bwd_compute + perf.bwd_comms)
    return times

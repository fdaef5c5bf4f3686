"""A table with its `ParameterConstraints`, as shardc's passes take it; and what of the constraints cannot be kept.

Every field has an effect or is refused by name; one that this version does not know is refused where it is set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from shardc.cost.torchrec import Inputs
from shardc.diagnostics import Diagnostic
from shardc.frameworks.torchrec_model import ModelTable, is_pooled, replicable
from shardc.problem import Kernel, Optimizer, ShardingType
from shardc.spec import CACHE_RATIO, Table, Zipf

if TYPE_CHECKING:
    from torchrec.distributed.planner import ParameterConstraints

PRECISIONS = ("fp16", "bf16", "fp32")
"""Types of weights and outputs, the widest last."""

HONOURED = (
    "sharding_types",
    "compute_kernels",
    "min_partition",
    "pooling_factors",
    "num_poolings",
    "batch_sizes",
    "is_weighted",
    "enforce_hbm",
    "stochastic_rounding",
    "bounds_check_mode",
    "feature_names",
    "output_dtype",
    "device_group",
)
"""Fields that have an effect, or are refused where they contradict the model."""
REFUSED = {
    "cache_params": "no table is placed with the kernel fused_uvm_caching",
    "key_value_params": "no table is placed with a kernel for SSDs",
    "use_virtual_table": "no table is placed with a kernel for virtual tables",
}
"""Fields that are refused where they are set, and why."""

VECTOR = 4
"""Columns that a width is a multiple of."""
_OPTIMIZERS = {
    "sgd": Optimizer.SGD,
    "exactsgd": Optimizer.SGD,
    "rowwiseadagrad": Optimizer.ROWWISE_ADAGRAD,
    "exactrowwiseadagrad": Optimizer.ROWWISE_ADAGRAD,
    "adagrad": Optimizer.ADAGRAD,
    "exactadagrad": Optimizer.ADAGRAD,
    "adam": Optimizer.ADAM,
}
# By the name of an optimizer's class or of FBGEMM's enumeration, in lower case without underscores.


@dataclass(frozen=True, slots=True)
class AskedTable:
    """What is asked of one table.

    Attributes:
        table: the table with what its constraints leave of it.
        inputs: what TorchRec's estimates have reach it.
        members: of its plan, that pass on what was asked for.
        outputs: type of its outputs.
        optimizer: fused into its backward pass; None for one that shardc does not know.
    """

    table: Table
    inputs: Inputs
    members: dict[str, Any]
    outputs: str
    optimizer: Optimizer | None


class _Traffic(NamedTuple):
    """By feature, or one for all features alike: lookups of a bag, bags of a sample, samples of a device."""

    lengths: list[float]
    poolings: list[float]
    batches: list[int]


class _Fault(NamedTuple):
    """What cannot be had, why, and what to do about it."""

    what: str
    reason: str
    help: str | None = None


def ask(
    label: str, table: ModelTable, limits: ParameterConstraints, device: str, batch_size: int
) -> AskedTable | list[Diagnostic]:
    """Return what is asked of a table, or everything that keeps it from being had (SH611).

    Args:
        label: name of the table in the problem.
        table: the model's table.
        limits: its constraints.
        device: kind of device.
        batch_size: samples of a device.
    """
    traffic = _traffic(limits, batch_size)
    types, without = _types(table, limits, device)
    faults = [*_model_faults(table), *_limit_faults(table, limits, traffic, device, without)]
    if faults:
        return [Diagnostic("SH611", f"{table.label}: {each.what}: {each.reason}", help=each.help) for each in faults]
    pooled, features = is_pooled(table), features_of(table)
    # TorchRec takes one value for a single feature; as much reaches each of the others.
    alike = len(features) if len(traffic.lengths) == 1 else 1
    lookups = sum(length * number * batch for length, number, batch in zip(*traffic, strict=True))
    counted = sum(min(1.0, length) * number * batch for length, number, batch in zip(*traffic, strict=True))
    bags = alike * sum(number * batch for _, number, batch in zip(*traffic, strict=True)) / batch_size
    pooling = alike * lookups / batch_size
    exchanged, reduced = _travelling(table, pooled)
    bounds, dtype = limits.bounds_check_mode, limits.output_dtype
    return AskedTable(
        table=Table(
            name=label,
            features=features,
            rows=table.rows,
            dim=table.dim,
            pooling=pooling,
            access=Zipf(0.0),
            sharding=types,
            kernels=(str(Kernel.FUSED),),
            cache_ratio=CACHE_RATIO,
            pin=None,
            group=None,
            apart=None,
            bags=bags if pooled else pooling,
            pooled=pooled,
            least_width=max(VECTOR, limits.min_partition or 0),
        ),
        inputs=Inputs(
            lookups=lookups,
            bags=counted if pooled else lookups,
            pooled=pooled,
            weighted=table.module.is_weighted() if pooled else limits.is_weighted,
            exchanged=exchanged,
            reduced=reduced,
        ),
        members={
            "enforce_hbm": limits.enforce_hbm,
            "stochastic_rounding": limits.stochastic_rounding,
            "bounds_check_mode": None if bounds is None else bounds.name.lower(),
            "output_dtype": None if dtype is None else dtype.name.lower(),
        },
        outputs=_output_dtype(table, limits),
        optimizer=_optimizer(table),
    )


def features_of(table: ModelTable) -> tuple[str, ...]:
    """The features that are looked up in a table."""
    return tuple(table.config.feature_names)


def _traffic(limits: ParameterConstraints, batch_size: int) -> _Traffic:
    lengths = list(limits.pooling_factors)
    poolings, batches = limits.num_poolings, limits.batch_sizes
    return _Traffic(lengths, list(poolings or [1.0] * len(lengths)), list(batches or [batch_size] * len(lengths)))


def _model_faults(table: ModelTable) -> Iterator[_Fault]:
    """Yield what is special about a table, and why that is too much."""
    if table.config is None:
        found = type(table.module).__name__
        yield _Fault(found, "tables of EmbeddingBagCollection and EmbeddingCollection are placed, no others")
        return
    if getattr(table.config, "use_virtual_table", False):
        yield _Fault("use_virtual_table", REFUSED["use_virtual_table"])
    if table.dtype not in PRECISIONS:
        yield _Fault("data_type", f"weights are {table.dtype}, expected one of {', '.join(PRECISIONS)}")
    if table.dim % VECTOR or not table.rows:
        yield _Fault("shape", f"{table.rows} x {table.dim}: expected rows, and columns in multiples of {VECTOR}")


def _limit_faults(
    table: ModelTable, limits: ParameterConstraints, traffic: _Traffic, device: str, without_type: _Fault | None
) -> Iterator[_Fault]:
    """Yield the fields that cannot be kept, and why; among them why no sharding type is left."""
    for unset in (each for each in fields(limits) if each.name not in HONOURED):
        if getattr(limits, unset.name) != _default(unset):
            yield _Fault(unset.name, REFUSED.get(unset.name, "this version of shardc does not know it"))
    if limits.device_group not in (None, device):
        yield _Fault("device_group", f'"{limits.device_group}", but the topology has devices of the type "{device}"')
    if limits.min_partition is not None and limits.min_partition < 1:
        yield _Fault("min_partition", f"{limits.min_partition}, expected a number of columns")
    if without_type:
        yield without_type
    if table.config is None:
        return
    features = features_of(table)
    if limits.feature_names is not None and set(limits.feature_names) != set(features):
        yield _Fault("feature_names", f"{', '.join(limits.feature_names)}, but the model has {', '.join(features)}")
    if limits.is_weighted and is_pooled(table) and not table.module.is_weighted():
        yield _Fault("is_weighted", "the module's lookups have no weights")
    if (output := _output_dtype(table, limits)) not in PRECISIONS:
        yield _Fault("output_dtype", f"{output}, expected one of {', '.join(PRECISIONS)}")
    counts = [len(values) for values in traffic]
    together = "pooling_factors, num_poolings and batch_sizes"
    if len(set(counts)) > 1:
        yield _Fault(together, f"{', '.join(map(str, counts))} values, expected as many of each")
    elif counts[0] not in (1, len(features)):
        yield _Fault("pooling_factors", f"{counts[0]} values, expected one for each of {len(features)} features")
    elif not all(math.isfinite(value) and value >= 0 for values in traffic for value in values):
        yield _Fault(together, "expected finite values that are not negative")
    elif not any(map(math.prod, zip(*traffic, strict=True))):
        yield _Fault(together, "they leave no lookups")


def _default(of: Field[Any]) -> Any:
    return of.default if of.default_factory is MISSING else of.default_factory()


def _types(table: ModelTable, limits: ParameterConstraints, device: str) -> tuple[tuple[str, ...], _Fault | None]:
    """The sharding types that sharder and constraints leave, or why they leave none."""
    what = "sharding_types and compute_kernels"
    sharder, known = table.sharder, [str(type) for type in ShardingType]
    wanted = limits.sharding_types or known
    if strange := [type for type in wanted if type not in known]:
        return (), _Fault(what, f'there is no sharding type "{strange[0]}"')
    offered = [type for type in sharder.sharding_types(device) if type in known]
    usable = offered
    if table.config is not None and not replicable(table, device):
        usable = [type for type in offered if type != ShardingType.DATA_PARALLEL]
    if not set(usable) & set(wanted):
        if set(offered) & set(wanted):
            reason = "data_parallel would train wrong: FBGEMM's dense operator pools the lookups of sequences on CPUs"
            return (), _Fault(what, reason, f"allow {' or '.join(usable)}" if usable else None)
        reason = f"{type(sharder).__name__} has {', '.join(usable)} on {device}, not {', '.join(wanted)}"
        on_gpus = [type for type in wanted if type in sharder.sharding_types("cuda") and type not in offered]
        runs = f"TorchRec runs {' and '.join(on_gpus)} on {device} as well"
        fix = f"{runs}: subclass the sharder and override `sharding_types`" if on_gpus and is_pooled(table) else None
        return (), _Fault(what, reason, fix)
    found = []
    for each in (type for type in usable if type in wanted):
        needed = "dense" if each == ShardingType.DATA_PARALLEL else "fused"
        kernels = sharder.compute_kernels(each, device)
        if needed in kernels and needed in (limits.compute_kernels or kernels):
            found.append(each)
    if found:
        return tuple(found), None
    left, kernels = ", ".join(type for type in usable if type in wanted), ", ".join(limits.compute_kernels or ())
    return (), _Fault(what, f"{left} with {kernels}: tables have the kernel fused, or dense replicas")


def _output_dtype(table: ModelTable, limits: ParameterConstraints) -> str:
    """Type of a table's outputs: as asked for, or as the sharder has it, or FBGEMM's default."""
    fused = (getattr(table.sharder, "fused_params", None) or {}).get("output_dtype")
    asked = limits.output_dtype if limits.output_dtype is not None else fused
    return "fp32" if asked is None else str(getattr(asked, "name", asked)).lower()


def _optimizer(table: ModelTable) -> Optimizer | None:
    """The optimizer fused into a table's backward pass, as TorchRec finds it."""
    if classes := getattr(table.parameter, "_optimizer_classes", None):
        name = classes[0].__name__
    else:
        fused = (getattr(table.sharder, "fused_params", None) or {}).get("optimizer")
        name = "sgd" if fused is None else str(getattr(fused, "name", fused))
    return _OPTIMIZERS.get(name.lower().replace("_", ""))


def _travelling(table: ModelTable, pooled: bool) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Bytes of an element in the all-to-all and in the reduce-scatter, where the sharder quantises them."""
    if not getattr(table.sharder, "qcomm_codecs_registry", None):
        return None, None
    from torchrec.distributed.planner.utils import build_sharder_data
    from torchrec.distributed.types import CommOp

    sizes = build_sharder_data(table.sharder).qcomm_dtype_sizes
    exchange = CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL if pooled else CommOp.SEQUENCE_EMBEDDINGS_ALL_TO_ALL
    return sizes.get(exchange.name), sizes.get(CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER.name) if pooled else None

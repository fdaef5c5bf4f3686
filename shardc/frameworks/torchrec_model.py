"""A PyTorch model's embedding tables as TorchRec's sharders see them, and in what a plan for them differs."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.passes.verify import extent
from shardc.plan import TablePlan

if TYPE_CHECKING:
    from torch import nn
    from torchrec.distributed.types import ModuleSharder

_DTYPES = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}
_DATA_PARALLEL = "data_parallel"


@dataclass(frozen=True, slots=True)
class ModelTable:
    """One table of a model.

    Attributes:
        path: of its module in the model; empty if the model is the module.
        name: of the table.
        rows: its rows.
        dim: its columns.
        dtype: of its weights: fp32, fp16, bf16, or what torch calls another one.
        module: that holds it.
        sharder: that shards the module.
        parameter: its weights.
        config: of the table; None in a module other than an EmbeddingBagCollection or EmbeddingCollection.
    """

    path: str
    name: str
    rows: int
    dim: int
    dtype: str
    module: Any
    sharder: ModuleSharder[Any]
    parameter: nn.Parameter
    config: Any

    @property
    def label(self) -> str:
        """What people are told that it is."""
        return f'module "{self.path}", table "{self.name}"'


def require_model(model: Any) -> None:
    """Make sure that something is a PyTorch model.

    Raises:
        DiagnosticError: SH103, exit code 2.
    """
    from torch import nn

    if not isinstance(model, nn.Module):
        message = f"expected a model (torch.nn.Module), found a {type(model).__name__}"
        raise DiagnosticError(Diagnostic("SH103", message), exit_code=2)


def require_sharders(sharders: Any) -> None:
    """Make sure that something is a list of TorchRec's sharders, or None.

    Raises:
        DiagnosticError: SH103, exit code 2.
    """
    from torchrec.distributed.types import ModuleSharder

    each = list(sharders) if isinstance(sharders, Iterable) else None
    if sharders is not None and (each is None or not all(isinstance(sharder, ModuleSharder) for sharder in each)):
        message = f"expected sharders as a list of TorchRec's sharders, found {reprlib.repr(sharders)}"
        advice = "sharders are instances, such as EmbeddingBagCollectionSharder()"
        raise DiagnosticError(Diagnostic("SH103", message, help=advice), exit_code=2)


def tables_of(model: nn.Module, sharders: Sequence[ModuleSharder[Any]] | None) -> list[ModelTable]:
    """Return the tables that sharders shard, module by module.

    A module with a sharder is not looked into, as TorchRec does not either.

    Args:
        model: the model, before it is sharded; its weights may be on the meta device.
        sharders: what will shard it; None for TorchRec's default ones.
    """
    from torchrec.distributed.sharding_plan import get_default_sharders

    of_type = {sharder.module_type: sharder for sharder in (get_default_sharders() if sharders is None else sharders)}
    tables = []
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop(0)
        sharder = of_type.get(type(module))
        if sharder is None:
            waiting += [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
            continue
        configs = _configs(module)
        for name, parameter in sharder.shardable_parameters(module).items():
            rows, dim = (*parameter.shape, 1, 1)[:2]
            dtype = _DTYPES.get(str(parameter.dtype), str(parameter.dtype))
            tables.append(ModelTable(path, name, rows, dim, dtype, module, sharder, parameter, configs.get(name)))
    return tables


def is_pooled(table: ModelTable) -> bool:
    """Whether the lookups of a bag become one output."""
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    return isinstance(table.module, EmbeddingBagCollection)


def replicable(table: ModelTable, device_type: str) -> bool:
    """Whether a table can be data-parallel: on CPUs, FBGEMM's dense operator pools what should not be (1.8.0)."""
    return device_type != "cpu" or is_pooled(table)


def _configs(module: nn.Module) -> dict[str, Any]:
    """The configurations of a collection's tables, by name."""
    from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

    if isinstance(module, EmbeddingBagCollection):
        return {config.name: config for config in module.embedding_bag_configs()}
    if isinstance(module, EmbeddingCollection):
        return {config.name: config for config in module.embedding_configs()}
    return {}


def differences(
    plan: Mapping[str, Mapping[str, TablePlan]],
    weights: str,
    model: nn.Module,
    sharders: Sequence[ModuleSharder[Any]] | None,
    device_type: str,
) -> Iterator[Diagnostic]:
    """Yield everything in which a plan is not one for the model.

    Sharding types that a sharder lists for GPUs only are let pass on CPUs, where TorchRec runs them all the same;
    kernels have to be the device's own.

    Args:
        plan: module path → table → how it is sharded.
        weights: dtype of the weights that the plan is for.
        model: as of `tables_of`.
        sharders: as of `tables_of`.
        device_type: kind of device that the shards go to.
    """
    wanted = {(table.path, table.name): table for table in tables_of(model, sharders)}
    paths = {path for path, _ in wanted}
    for path in sorted(paths - plan.keys()):
        count = sum(each == path for each, _ in wanted)
        yield _differs(f'module "{path}": expected {count} tables in the plan, found none')
    for path, tables in plan.items():
        if path not in paths:
            known = ", ".join(f'"{name}"' for name in sorted(paths)) or "none"
            yield _differs(
                f'module "{path}": expected a module with a sharder, found none', f"modules with one: {known}"
            )
            continue
        names = [name for each, name in wanted if each == path]
        for name in names:
            if name not in tables:
                yield _differs(f"{wanted[path, name].label}: expected in the plan, found not")
        for name, placed in tables.items():
            if (path, name) not in wanted:
                yield _differs(f'module "{path}", table "{name}": expected in the model, found not')
            else:
                yield from _of_table(wanted[path, name], placed, weights, device_type)
        yield from _widths(path, tables, {name: wanted[path, name] for name in names})


def _of_table(table: ModelTable, placed: TablePlan, weights: str, device_type: str) -> Iterator[Diagnostic]:
    if size := extent(placed):
        for what, expected, found in (("rows", size[0], table.rows), ("dim", size[1], table.dim)):
            if expected != found:
                yield _differs(
                    f"{table.label}: expected {what} = {expected} as in the plan, found {found} in the model"
                )
    if table.dtype != weights:
        yield _differs(f"{table.label}: expected {weights} weights as in the plan, found {table.dtype} in the model")
    if placed.sharding_type == _DATA_PARALLEL and table.config is not None and not replicable(table, device_type):
        message = f"{table.label}: expected a sharding type that FBGEMM has for sequences on CPUs, found data_parallel"
        yield _differs(message, "its dense operator pools the lookups there")
    sharder, name = table.sharder, type(table.sharder).__name__
    types = list(dict.fromkeys([*sharder.sharding_types(device_type), *sharder.sharding_types("cuda")]))
    if placed.sharding_type not in types:
        message = f"{table.label}: expected a sharding type that {name} has, found {placed.sharding_type}"
        yield _differs(message, f"it has {', '.join(types)}")
        return
    kernels = sharder.compute_kernels(placed.sharding_type, device_type)
    if placed.compute_kernel not in kernels:
        message = f"{table.label}: expected a kernel that {name} has on {device_type}, found {placed.compute_kernel}"
        yield _differs(message, f"it has {', '.join(kernels)}")


def _widths(path: str, tables: Mapping[str, TablePlan], known: Mapping[str, ModelTable]) -> Iterator[Diagnostic]:
    """Yield the ranks on which a sequence collection has column blocks of several widths, which FBGEMM refuses."""
    from torchrec.modules.embedding_modules import EmbeddingCollection

    widths: dict[int, dict[int, str]] = {}
    for name, placed in tables.items():
        if name in known and isinstance(known[name].module, EmbeddingCollection) and "column" in placed.sharding_type:
            for shard in placed.shards:
                widths.setdefault(shard.rank, {})[shard.shard_sizes[1]] = name
    for rank, found in sorted(widths.items()):
        if len(found) > 1:
            listed = " and ".join(f'{width} (table "{name}")' for width, name in sorted(found.items()))
            yield _differs(
                f'module "{path}": expected column blocks of one width on rank {rank}, found {listed}',
                "lookups that are not pooled are one operator, of one width",
            )


def _differs(message: str, help: str | None = None) -> Diagnostic:
    return Diagnostic("SH610", message, help=help or "compile a plan for this model, or load the model it was made for")

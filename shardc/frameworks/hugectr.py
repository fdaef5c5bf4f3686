"""Writes a plan as the arguments of `hugectr.EmbeddingCollectionConfig.shard`.

What HugeCTR 25.03 makes of them (its layer documentation, section Embedding Collection, and embedding_collection.cpp):

- `shard_matrix` has one list a GPU: the names of the tables of which the GPU holds a piece.
- `shard_strategy` pairs "dp" or "mp" with tables; each table is in one pair. A "dp" table is replicated on every GPU.
- An "mp" table is on the GPUs that list it. As (name, c) it is cut into c column blocks of equal width, and block i is
  on the i-th part of these GPUs, counted in ascending order. The n GPUs of a block share its rows: GPU j holds every
  n-th row from row j. So many rows as in TorchRec's blocks, but other ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardc.diagnostics import Diagnostic, DiagnosticError, quoted_tables
from shardc.plan import Plan, TablePlan, canonical_json

_MAX_WIDTH = 256  # elements of an embedding vector, by its list of known limitations


def hugectr_shard(plan: Plan) -> str:
    """Return `shard_matrix` and `shard_strategy` as JSON, for `ebc_config.shard(**json.load(file))`.

    Which columns a GPU holds is HugeCTR's choice, ascending with the GPUs; how many of which table, the plan's.

    Raises:
        DiagnosticError: SH703 for what HugeCTR cannot run, with the tables that it is about.
    """
    tables = {(module, name): table for module, of_module in plan.plan.items() for name, table in of_module.items()}
    if findings := list(_refusals(tables)):
        raise DiagnosticError(*findings)
    matrix: list[list[str]] = [[] for _ in range(plan.cluster.devices)]
    parallel: dict[str, list[object]] = {"mp": [], "dp": []}
    for (_, name), table in tables.items():
        for rank in sorted(set(table.ranks)):
            matrix[rank].append(name)
        blocks = len(_widths(table))
        parallel["mp" if table.shards else "dp"].append([name, blocks] if blocks > 1 else name)
    strategy = [[how, of_it] for how, of_it in parallel.items() if of_it]
    return canonical_json({"shard_matrix": matrix, "shard_strategy": strategy})


def hugectr_differences(plan: Plan) -> list[Diagnostic]:
    """Return warnings (SH704) of what takes other memory or time in HugeCTR than the plan counts with."""
    reasons = []
    if plan.model.optimizer == "rowwise_adagrad":
        fix = 'plan with optimizer = "adagrad" or "sgd"'
        reasons.append(("HugeCTR has no row-wise Adagrad; its AdaGrad keeps a state for each weight", fix))
    if plan.model.optimizer == "adam":
        reasons.append(("HugeCTR has Adam for dynamic tables only", "set max_vocabulary_size = -1 there"))
    if plan.model.weights != "fp32":
        reasons.append((f"HugeCTR keeps weights as fp32, not {plan.model.weights}", 'plan with weights = "fp32"'))
    return [Diagnostic("SH704", reason, help=fix, severity="warning") for reason, fix in reasons]


def _refusals(tables: dict[tuple[str, str], TablePlan]) -> Iterator[Diagnostic]:
    first: dict[str, str] = {}
    twice = [name for module, name in tables if first.setdefault(name, module) != module]
    cached = [name for (_, name), table in tables.items() if table.compute_kernel not in ("dense", "fused")]
    uneven = [name for (_, name), table in tables.items() if len(set(_widths(table))) > 1]
    wide = [name for (_, name), table in tables.items() if max(_widths(table), default=0) > _MAX_WIDTH]
    for names, fault, advice in (
        (twice, "two modules with tables of one name", "rename them: HugeCTR knows tables by name alone"),
        (cached, "tables that are not all in device memory", "plan them for device memory"),
        (
            uneven,
            "column blocks of different widths",
            'allow other types for them, as in sharding = ["table_wise", "row_wise", "table_row_wise"]',
        ),
        (wide, f"vectors of more than {_MAX_WIDTH} elements", 'cut them narrower: allow only "column_wise"'),
    ):
        if names:
            yield Diagnostic("SH703", f"HugeCTR cannot run {fault}: {quoted_tables(names)}", help=advice)


def _widths(table: TablePlan) -> list[int]:
    """Widths of the column blocks; nothing for a replicated table, whose shards a plan does not list."""
    return list({shard.shard_offsets[1]: shard.shard_sizes[1] for shard in table.shards}.values())

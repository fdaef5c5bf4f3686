"""Drafts a spec of a model: what the model says, and assumptions, marked as such, for what it does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from shardc.frameworks.model import Collection, FoundTable, Kind
from shardc.frameworks.planner_inputs import PlannerFacts
from shardc.hardware import load_hardware
from shardc.source import Path

_ABOUT = """\
{tables} of {model}, as {reference} builds it.
What neither the model nor the command line said is marked as assumed. Pooling and access decide where tables go: to
measure them, save the lookups of one batch with torch.save((indices, offsets, lengths), "lookups.pt"), tables in the
order below, lengths[table, sample]; `shardc import dlrm lookups.pt -o -` prints both for every table.
"""
_NOT_POOLED = """\
Outputs of {kinds} are not pooled. Costs are those of pooled ones: exact for a pooling of 1, too low above.
"""
# Of what TorchRec's EmbeddingCollectionSharder offers: without column_wise, whose pieces would all need one width; and
# on CPUs without data_parallel, since FBGEMM's dense operator (1.8.0) pools there what should not be.
_OF_SEQUENCES = {"cuda": ["table_wise", "row_wise", "data_parallel"], "cpu": ["table_wise", "row_wise"]}
_DEVICES = {"cuda": "h100-80gb", "cpu": "cpu-epyc"}


class Draft(NamedTuple):
    """A spec to be: its content as nested dicts, the comment above it, and what to say of single values."""

    content: dict[str, Any]
    about: str
    notes: dict[Path, str]


def draft(
    collection: Collection,
    model: str,
    reference: str,
    given: Mapping[str, Any],
    planned: PlannerFacts | None = None,
    base: str = "",
) -> Draft:
    """Write down what is known of a model, and assume the rest.

    Args:
        collection: the tables.
        model: name of the model.
        reference: the function that builds it.
        given: members of `[model]` and `[cluster]` that the user stated; None for what was not.
        planned: what TorchRec's planner was told, if anything.
        base: folder that the spec will be in.

    Raises:
        DiagnosticError: everything that `load_hardware` raises of the device.
    """
    notes: dict[Path, str] = {}
    assumed = {
        "global_batch": (planned.global_batch if planned else 65536, "samples of a step, over all devices"),
        "optimizer": ("rowwise_adagrad", "or sgd, adagrad, adam"),
        "device": (_DEVICES[planned.device_type if planned else "cuda"], "`shardc devices` lists them"),
        "hosts": (1, "number of hosts"),
        "devices_per_host": (8, "devices of each host"),
    }
    of_planner = {**planned.notes, "global_batch": "batch_size x ranks"} if planned else {}

    def member(section: str, name: str) -> Any:
        if (value := given.get(name)) is not None:
            return value
        value, meaning = assumed[name]
        if planned and name in planned.cluster:
            value = planned.cluster[name]
        notes[(section, name)] = of_planner.get(name) or f"assumed; {meaning}"
        return value

    about = _ABOUT.format(
        tables=f"{len(collection.tables):,} table{'s' * (len(collection.tables) > 1)}", model=model, reference=reference
    )
    content: dict[str, Any] = {
        "format": 1,
        "model": {
            "name": model,
            "module": collection.path,
            "global_batch": member("model", "global_batch"),
            "optimizer": member("model", "optimizer"),
            "weights": collection.tables[0].weights,
        },
        "cluster": {name: member("cluster", name) for name in ("device", "hosts", "devices_per_host")},
        "defaults": _defaults(collection),
        "table": list(_tables(collection, planned, notes)),
    }
    content["cluster"]["reserve"] = "15%"
    notes["cluster", "reserve"] = "assumed; for the dense model and activations"
    for name, value in (planned.cluster if planned else {}).items():
        if name not in assumed:
            content["cluster"][name] = value
            notes["cluster", name] = of_planner.get(name, "")
    notes["defaults", "pooling"] = "assumed; mean lookups a sample"
    notes["defaults", "access"] = 'assumed; uniform. Or { zipf = 1.05 }, or { indices = "lookups.pt" }'
    if collection.kind is Kind.SEQUENCE:
        device_type = load_hardware(content["cluster"]["device"], base=base).device_type
        content["defaults"]["sharding"] = _OF_SEQUENCES[device_type]
        notes["defaults", "sharding"] = "what runs where lookups are not pooled"
    if not all(table.pooled for table in collection.tables):
        about += _NOT_POOLED.format(kinds="nn.Embedding" if collection.kind is Kind.PLAIN else collection.kind)
    about += "".join(f"{warning.message}\n" for warning in (planned.warnings if planned else ()))
    return Draft(content, about, notes)


def _defaults(collection: Collection) -> dict[str, Any]:
    dims = {table.dim for table in collection.tables}
    return {
        **({"dim": dims.pop()} if len(dims) == 1 else {}),
        "pooling": 1,
        "access": "uniform",
    }


def _tables(collection: Collection, planned: PlannerFacts | None, notes: dict[Path, str]) -> Iterator[dict[str, Any]]:
    one_dim = len({table.dim for table in collection.tables}) == 1
    below = f"{collection.path}." if collection.path else ""
    for number, table in enumerate(collection.tables):
        if collection.kind is Kind.PLAIN and table.path != below + table.name:
            notes["table", number, "name"] = f"the module {table.path}" if table.path else "the model itself"
        if len(table.features) > 1:
            notes["table", number, "pooling"] = "assumed; one lookup of each feature"
        members: dict[str, Any] = {**_table(table, one_dim)}
        if planned and table.name in planned.tables:
            stated = planned.tables[table.name]
            members.update(stated)
            notes.update({("table", number, name): "of the constraints" for name in stated})
        yield members


def _table(table: FoundTable, one_dim: bool) -> dict[str, Any]:
    return {
        "name": table.name,
        **({"features": list(table.features)} if table.features not in ((), (table.name,)) else {}),
        "rows": table.rows,
        **({} if one_dim else {"dim": table.dim}),
        **({"pooling": len(table.features)} if len(table.features) > 1 else {}),
    }

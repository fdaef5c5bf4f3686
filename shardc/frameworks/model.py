"""Finds the embedding tables of a PyTorch model: TorchRec's collections, and plain `nn.Embedding` modules."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from shardc.diagnostics import Diagnostic, DiagnosticError

if TYPE_CHECKING:
    from torch import nn


class Kind(StrEnum):
    """What holds tables."""

    POOLED = "EmbeddingBagCollection"
    SEQUENCE = "EmbeddingCollection"
    PLAIN = "torch.nn"


@dataclass(frozen=True, slots=True)
class FoundTable:
    """One table.

    Attributes:
        name: as TorchRec has it; of a plain module, its path below the collection's, with "_" for dots.
        path: of the module that is the table, from the model.
        rows: rows.
        dim: elements of a vector.
        features: looked up in it; empty where the model does not say.
        weights: dtype of the weights, as a spec has it where it can, else as torch names it.
        pooled: whether its lookups are pooled into one vector a sample.
    """

    name: str
    path: str
    rows: int
    dim: int
    features: tuple[str, ...]
    weights: str
    pooled: bool


@dataclass(frozen=True, slots=True)
class Collection:
    """Tables that a spec can be about: those of one TorchRec collection, or all plain ones.

    Attributes:
        path: of the module that holds them, from the model; "" for the model itself.
        kind: what that module is.
        tables: its tables, in their order in the model.
    """

    path: str
    kind: Kind
    tables: tuple[FoundTable, ...]


# TorchRec shards these as a whole: a plan names their path, not that of the collection inside.
_WRAPPERS = {
    "FeatureProcessedEmbeddingBagCollection",
    "ManagedCollisionEmbeddingCollection",
    "ManagedCollisionEmbeddingBagCollection",
    "ITEPEmbeddingBagCollection",
    "ITEPEmbeddingCollection",
}
_QUANTIZED = ("torch.ao.nn.quantized", "torchrec.quant")
_PRECISION = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "FP32": "fp32", "FP16": "fp16", "BF16": "bf16"}


def find_collection(model: nn.Module, module: str | None = None) -> Collection:
    """Return the tables that a spec is to describe.

    Args:
        model: the model, on any device.
        module: path of a TorchRec collection, or of a module that holds plain tables; None where there is no choice.

    Raises:
        DiagnosticError: SH702 when there are no tables, or some that a spec cannot describe; SH902, exit code 2, when
            the model has several collections or none at that path.
    """
    found = [each for each in _walk(model, "", set()) if isinstance(each, FoundTable) or each.tables]
    collections = [item for item in found if isinstance(item, Collection)]
    plain = [item for item in found if isinstance(item, FoundTable)]
    if module is not None:
        below = [table for table in plain if not module or f"{table.path}.".startswith(f"{module}.")]
        chosen = [c for c in collections if c.path == module] or ([_plain(below, module)] if below else [])
    else:
        chosen = collections + ([_plain(plain)] if plain else [])
    if not found:
        message = f"{type(model).__name__} has no embedding tables"
        advice = "shardc looks for EmbeddingBagCollection, EmbeddingCollection, nn.EmbeddingBag and nn.Embedding"
        raise DiagnosticError(Diagnostic("SH702", message, help=advice))
    if len(chosen) != 1:
        raise _choice(collections + ([_plain(plain)] if plain else []), module)
    if findings := list(_indescribable(chosen[0])):
        raise DiagnosticError(*findings)
    return chosen[0]


def _walk(module: nn.Module, path: str, seen: set[int]) -> Iterator[Collection | FoundTable]:
    """Yield the TorchRec collections and the plain tables, each once though a model may hold it twice."""
    from torch import nn

    if id(module) in seen:
        return
    seen.add(id(module))
    if type(module).__module__.startswith(_QUANTIZED):
        message = f"{path or 'the model'} is quantized ({type(module).__name__}): shardc plans training"
        raise DiagnosticError(Diagnostic("SH702", message, help="build the model as it is trained"))
    if collection := _torchrec(module, path):
        yield collection
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        if id(module.weight) in seen:
            return  # tied to another module's: one table
        seen.add(id(module.weight))
        weights = str(module.weight.dtype).removeprefix("torch.")
        pooled = isinstance(module, nn.EmbeddingBag)
        rows, dim = module.num_embeddings, module.embedding_dim
        yield FoundTable("", path, rows, dim, (), _PRECISION.get(weights, weights), pooled)
    else:
        for name, child in module.named_children():
            inner = list(_walk(child, f"{path}.{name}" if path else name, seen))
            if type(module).__name__ in _WRAPPERS:
                inner = [Collection(path, i.kind, i.tables) if isinstance(i, Collection) else i for i in inner]
            yield from inner


def _torchrec(module: nn.Module, path: str) -> Collection | None:
    """The tables of a TorchRec collection; None for every other module."""
    torchrec = sys.modules.get("torchrec.modules.embedding_modules")  # whoever made a collection has imported it
    if torchrec is None:
        return None
    if isinstance(module, torchrec.EmbeddingBagCollectionInterface):
        return Collection(path, Kind.POOLED, _of_configs(module.embedding_bag_configs(), path, pooled=True))
    if isinstance(module, torchrec.EmbeddingCollectionInterface):
        return Collection(path, Kind.SEQUENCE, _of_configs(module.embedding_configs(), path, pooled=False))
    return None


def _of_configs(configs: Sequence[Any], path: str, *, pooled: bool) -> tuple[FoundTable, ...]:
    return tuple(
        FoundTable(
            name=config.name,
            path=path,
            rows=config.num_embeddings,
            dim=config.embedding_dim,
            features=tuple(config.feature_names),
            weights=_PRECISION.get(config.data_type.name, config.data_type.name),
            pooled=pooled,
        )
        for config in configs
    )


def _plain(tables: Sequence[FoundTable], path: str | None = None) -> Collection:
    """Plain tables as one collection: of the path, or of the innermost module that holds them all."""
    parts = [table.path.split(".")[:-1] if table.path else [] for table in tables]
    if path is None or path in {table.path for table in tables}:
        first, last = min(parts), max(parts)
        common = next((i for i, part in enumerate(first) if last[i : i + 1] != [part]), len(first))
        path = ".".join(first[:common])
    skip = len(path) + 1 if path else 0
    named = [(table, table.path[skip:].replace(".", "_")) for table in tables]
    return Collection(
        path=path,
        kind=Kind.PLAIN,
        tables=tuple(
            FoundTable(name or "table", t.path, t.rows, t.dim, t.features, t.weights, t.pooled) for t, name in named
        ),
    )


def _choice(collections: Sequence[Collection], module: str | None) -> DiagnosticError:
    fault = "a spec is about one" if module is None else f'none of them is "{module}"'
    places = [f'"{c.path}" ({c.kind}, {len(c.tables)} table{"s" * (len(c.tables) > 1)})' for c in collections]
    message = f"the model has tables in {', '.join(places)}: {fault}"
    advice = "choose one with --module PATH; each spec plans as if its tables were alone, so reserve memory for others"
    return DiagnosticError(Diagnostic("SH902", message, help=advice), exit_code=2)


def _indescribable(collection: Collection) -> Iterator[Diagnostic]:
    """Yield what a spec has no words for."""
    for table in collection.tables:
        if table.weights not in _PRECISION.values():
            message = f'table "{table.name}" has weights of {table.weights}; shardc plans fp32, fp16 and bf16'
            yield Diagnostic("SH702", message)
        if table.dim % 4:
            message = f'table "{table.name}" has vectors of length {table.dim}; FBGEMM needs a multiple of 4'
            yield Diagnostic("SH702", message, help="pad them, or choose other tables with --module PATH")
    kinds = {table.weights: table.name for table in reversed(collection.tables)}
    if len(kinds) > 1 and kinds.keys() <= set(_PRECISION.values()):
        examples = ", ".join(f'{weights} ("{name}")' for weights, name in sorted(kinds.items()))
        yield Diagnostic("SH702", f"tables have weights of different types, of which a spec has one: {examples}")
    for name, count in Counter(table.name for table in collection.tables).items():
        if count > 1:
            paths = " and ".join(table.path for table in collection.tables if table.name == name)
            yield Diagnostic("SH702", f'two tables would have the name "{name}": {paths}', help="rename a module")

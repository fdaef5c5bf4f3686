"""The spec: a TOML file that describes a model's embedding tables and a cluster, read and validated.

`load_spec` reports everything that is wrong with a file at once, each finding where it stands in the file.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal, NoReturn, TypeVar, cast

import tomli
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from shardc.diagnostics import (
    CODES,
    MOST_FINDINGS,
    Diagnostic,
    DiagnosticError,
    Location,
    first_of,
    quoted_tables,
)
from shardc.files import MAX_SPEC_BYTES, is_hidden, is_within, read_text
from shardc.settings import Setting, apply, apply_to_table
from shardc.source import CsvSource, Path, Source
from shardc.units import format_bytes
from shardc.vocabulary import CONFLICT, MAX_DEVICES, MAX_TABLES, Precision, ShardingType

FORMAT = 1
"""The version of the spec's format that this shardc reads."""

SHARDING_TYPES = (
    "table_wise",
    "column_wise",
    "table_column_wise",
    "row_wise",
    "table_row_wise",
    "grid_shard",
    "data_parallel",
)
"""The sharding types that a plan can use, in canonical order."""

KERNELS = ("fused", "fused_uvm_caching")
"""The kernels that tables can have unless they are data-parallel, in canonical order."""

_REPLICATED = "data_parallel"
_ON_EVERY_DEVICE = {"row_wise", _REPLICATED}
_USUAL_KERNELS, _CACHING = ("fused",), "fused_uvm_caching"
CACHE_RATIO = 0.2
"""Share of the rows of a cached table that a cache holds: TorchRec's load factor unless it is told another."""

MAX_MEMORY = 2**50
"""Bytes of a device or a host."""

MAX_MEMORY_TOTAL = 2**62
"""Bytes of all devices together: sums stay within int64."""

MAX_SEED = 2**32 - 1
BIN_COUNT = 17

_BINS_TOLERANCE = 1e-3
_INT64_MAX = 2**63 - 1
_MAX_ELEMENTS = 2**58
_MAX_KEYS = 1000
_NAME_LENGTH = 200

Kernel = Literal["fused", "fused_uvm_caching"]


# --- The values of a spec ---------------------------------------------------------------------------------------------


def _reject(complaint: str, *, code: str = "SH104", help: str | None = None, at: Path = ()) -> NoReturn:
    """Fail a validation with our own words; `at` leads from the validated value to the offending part of it."""
    raise PydanticCustomError("shardc", "{complaint}", {"complaint": complaint, "code": code, "help": help, "at": at})


def _printable(value: str) -> str:
    if not value:
        _reject("expected some text, found an empty string")
    if not value.isprintable():
        _reject(f"expected no control characters, found {_quoted(value)}")
    if len(value) > _NAME_LENGTH:
        _reject(f"expected at most {_NAME_LENGTH} characters, found {len(value)}")
    return value


def _table_name(value: str) -> str:
    if "." in value or "/" in value:
        _reject(f'expected a name without "." and "/", found {_quoted(value)}', help="TorchRec joins names with dots")
    return value


def _vector_length(value: int) -> int:
    if value % 4:
        below = value // 4 * 4
        _reject(f"expected a multiple of 4, found {value}", help=f"use {below} or {below + 4}")
    return value


def _module_path(value: str) -> str:
    if not value:
        return value
    _printable(value)
    if not all(part.isidentifier() or (part.isascii() and part.isdigit()) for part in value.split(".")):
        example = 'for example "sparse_arch.embedding_bag_collection"'
        _reject(f"expected identifiers and indices joined by dots, found {_quoted(value)}", help=example)
    return value


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        _reject("expected at least one element, found none")
    seen: set[Any] = set()
    for index, value in enumerate(values):
        if value in seen:
            _reject(f"expected distinct elements, found {_quoted(value)} twice", code="SH105", at=(index,))
        seen.add(value)
    return values


def _format_version(value: Any) -> Any:
    if type(value) is not int:
        _reject(f"expected the integer {FORMAT}, found {_kind(value)}", code="SH103")
    if value != FORMAT:
        advice = "a newer shardc may read it" if value > FORMAT else None
        _reject(f"format {_quoted(value)} is not one that this shardc reads ({FORMAT})", code="SH109", help=advice)
    return value


_NUMBER = r"(\d{1,19}(?:\.\d{1,9})?)"
_SIZE = re.compile(_NUMBER + r" ?(?:([KMGTP])(i?))?B", re.ASCII)
_PERCENT = re.compile(_NUMBER + r" ?%", re.ASCII)


def parse_size(text: str) -> int | None:
    """Return the bytes of "72GiB" or "80GB", None for another form, or nothing from 1 to 2**63 - 1."""
    if not (match := _SIZE.fullmatch(text)):
        return None
    number, unit, binary = match.groups()
    exponent = "KMGTP".index(unit) + 1 if unit else 0
    whole, _, decimals = number.partition(".")
    share = 10 ** len(decimals)
    size = (2 * int(whole + decimals) * (1024 if binary else 1000) ** exponent + share) // (2 * share)
    return size if 0 < size <= _INT64_MAX else None


def _memory(text: str) -> int | None:
    """Return the bytes of a device's or a host's memory."""
    size = parse_size(text)
    return size if size is not None and size <= MAX_MEMORY else None


def parse_bandwidth(text: str) -> int | None:
    """Return the bytes a second of "450GB/s"."""
    return parse_size(text.removesuffix("/s").rstrip()) if text.endswith("/s") else None


def _percent(text: str, *, below: float = 1000.0) -> float | None:
    """Return 0.15 for "15%", None when the text has another form or is `below` percent or more."""
    match = _PERCENT.fullmatch(text)
    return float(match[1]) / 100 if match and float(match[1]) < below else None


def parse_share(text: str) -> float | None:
    """Return 0.8 for "80%", None when the text has another form or is above 100 percent."""
    share = _percent(text)
    return None if share is None or share > 1 else share


@dataclass(frozen=True, slots=True)
class MoveBudget:
    """How much may move: a share of the bytes of all shards, or bytes; whatever is worth it if neither is given."""

    share: float | None = None
    bytes: int | None = None

    @staticmethod
    def parse(text: str) -> MoveBudget | None:
        """Return the budget that "5%", "2GiB" or "0" is; None for a text of another form."""
        if text.endswith("%"):
            share = parse_share(text)
            return None if share is None else MoveBudget(share=share)
        size = 0 if text in ("0", "0B") else parse_size(text)
        return None if size is None else MoveBudget(bytes=size)

    def __str__(self) -> str:
        """The budget as people read it."""
        return f"{100 * self.share:.6g}%" if self.share is not None else format_bytes(self.bytes or 0)

    @property
    def given(self) -> bool:
        """Whether there is any limit."""
        return self.share is not None or self.bytes is not None

    def allows(self, moved_bytes: int, held_bytes: int) -> bool:
        """Whether no more moves than may, of the bytes of all shards."""
        if self.share is not None and moved_bytes > self.share * held_bytes:
            return False
        return self.bytes is None or moved_bytes <= self.bytes


def parse_share_or_size(text: str) -> float | int | None:
    """Return a fraction for a percentage, bytes for a size."""
    return _percent(text, below=100.0) if text.endswith("%") else parse_size(text)


def _form(parse: Callable[[str], object], expected: str, example: str) -> BeforeValidator:
    """Check that a value is a string that `parse` understands; the string is kept as it was written."""

    def check(value: Any) -> Any:
        if not isinstance(value, str):
            _reject(f"expected {expected} as a string, found {_kind(value)}", code="SH103", help=example)
        if parse(value) is None:
            _reject(f"expected {expected}, found {_quoted(value)}", help=example)
        return value

    return BeforeValidator(check)


def _share(value: Any) -> Any:
    """Check that a value is a percentage or a fraction; it is kept as it was written."""
    expected, example = "a percentage from 0% to 100% or a fraction from 0 to 1", 'for example "80%" or 0.8'
    is_number = type(value) in (int, float)
    if not is_number and not isinstance(value, str):
        _reject(f"expected {expected}, found {_kind(value)}", code="SH103", help=example)
    if not (0 <= value <= 1 if is_number else parse_share(value) is not None):
        _reject(f"expected {expected}, found {_quoted(value)}", help=example)
    return value


Text = Annotated[str, AfterValidator(_printable), Field(json_schema_extra={"minLength": 1, "maxLength": _NAME_LENGTH})]
Name = Annotated[Text, AfterValidator(_table_name), Field(json_schema_extra={"pattern": "^[^./]+$"})]
Dim = Annotated[int, Field(ge=4, le=8192, json_schema_extra={"multipleOf": 4}), AfterValidator(_vector_length)]
Size = Annotated[str, _form(_memory, "a size above zero and at most 1 PiB", 'for example "72GiB"')]
Bandwidth = Annotated[str, _form(parse_bandwidth, "a bandwidth above zero", 'for example "450GB/s" (bytes, not bits)')]
Percent = Annotated[str, _form(_percent, "a percentage from 0% to below 1000%", 'for example "2%"')]
Share = Annotated[str | Annotated[float, Field(ge=0, le=1)], BeforeValidator(_share)]
Moved = Annotated[
    str, _form(MoveBudget.parse, "a percentage from 0% to 100% or a size", 'for example "5%", "2GiB" or "0"')
]
Reserve = Annotated[
    str, _form(parse_share_or_size, "a percentage below 100% or a size", 'for example "15%" or "10GiB"')
]
# fail_fast: of an array the first wrong element is told, not millions.
_SET = (
    Field(strict=False, fail_fast=True, json_schema_extra={"minItems": 1, "uniqueItems": True}),
    AfterValidator(_distinct),
)
Sharding = Annotated[tuple[ShardingType, ...], *_SET]
Kernels = Annotated[tuple[Kernel, ...], *_SET]
Features = Annotated[tuple[Text, ...], *_SET]
Ranks = Annotated[tuple[Annotated[int, Field(ge=0, lt=MAX_DEVICES)], ...], *_SET]


# --- The sections of a spec, as they are written ----------------------------------------------------------------------


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_size(cls, value: Any) -> Any:
        """Refuse what has very many keys at once: pydantic would tell of each that it is unknown."""
        if isinstance(value, dict) and len(value) > _MAX_KEYS:
            _reject(f"expected at most {_MAX_KEYS} keys, found {len(value)}")
        return value


class ModelSpec(_Section):
    """The `[model]` section."""

    name: Text = Field(description="Name of the model; it appears in the plan.")
    module: Annotated[str, AfterValidator(_module_path)] = Field(
        json_schema_extra={"maxLength": _NAME_LENGTH},
        description='Dotted path of the module that holds the tables in the PyTorch model; "" for the model itself.',
    )
    global_batch: int = Field(ge=1, le=2**31, description="Samples of a training step, over all devices.")
    optimizer: Literal["sgd", "rowwise_adagrad", "adagrad", "adam"] = Field(
        default="rowwise_adagrad",
        description="Optimizer fused into the backward pass.",
    )
    weights: Precision = Field(default="fp32", description="Type of the stored weights.")
    outputs: Precision = Field(default="fp32", description="Type of the pooled embeddings that are exchanged.")


class HostSpec(_Section):
    """A `[[cluster.host]]` section: hosts that differ from the others."""

    hosts: Ranks = Field(description="Which hosts, counted from 0.")
    device: Text | None = Field(default=None, description="Hardware profile of their devices.")
    reserve: Reserve | None = Field(default=None, description="Memory of their devices that is kept free.")
    memory: Size | None = Field(default=None, description="Memory of their devices.")
    intra_host_bandwidth: Bandwidth | None = Field(default=None, description="Bandwidth of a device within its host.")
    inter_host_bandwidth: Bandwidth | None = Field(default=None, description="Bandwidth of a device to other hosts.")
    host_memory: Size | None = Field(default=None, description="Memory of each of them that tables may take.")


class RankSpec(_Section):
    """A `[[cluster.rank]]` section: single devices with another memory."""

    ranks: Ranks = Field(description="Which ranks.")
    memory: Size = Field(description='Memory of each of them: "40GiB".')


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What a spec says of the hosts of one kind; as written, None to take the profile's figure."""

    device: str
    reserve: str
    memory: str | None
    intra_host_bandwidth: str | None
    inter_host_bandwidth: str | None
    host_memory: str | None

    @property
    def memory_bytes(self) -> int | None:
        """Bytes of a device."""
        return parse_size(self.memory) if self.memory else None

    @property
    def host_memory_bytes(self) -> int:
        """Bytes of a host that tables may take."""
        return (parse_size(self.host_memory) or 0) if self.host_memory else 0

    @property
    def intra_bytes_per_s(self) -> float | None:
        """Bytes a second between devices of a host."""
        return parse_bandwidth(self.intra_host_bandwidth) if self.intra_host_bandwidth else None

    @property
    def inter_bytes_per_s(self) -> float | None:
        """Bytes a second between hosts."""
        return parse_bandwidth(self.inter_host_bandwidth) if self.inter_host_bandwidth else None

    def reserve_bytes(self, memory_bytes: int) -> int:
        """Return the bytes of a device's memory that no table may use."""
        reserve = parse_share_or_size(self.reserve) or 0
        return round(reserve * memory_bytes) if self.reserve.endswith("%") else int(reserve)


class ClusterSpec(_Section):
    """The `[cluster]` section."""

    device: Text = Field(description="Hardware profile of a device: a shipped name, or a folder of `shardc profile`.")
    hosts: int = Field(default=1, ge=1, le=MAX_DEVICES, description="Number of hosts.")
    devices_per_host: int = Field(ge=1, le=MAX_DEVICES, description="Devices of each host.")
    reserve: Reserve = Field(
        default="15%", description='Device memory kept free for the dense model and activations: "15%" or "10GiB".'
    )
    memory: Size | None = Field(default=None, description='Memory of a device, instead of the profile\'s: "72GiB".')
    intra_host_bandwidth: Bandwidth | None = Field(
        default=None,
        description='Bandwidth of a device within its host, instead of the profile\'s: "450GB/s".',
    )
    inter_host_bandwidth: Bandwidth | None = Field(
        default=None, description='Bandwidth of a device to other hosts, instead of the profile\'s: "50GB/s".'
    )
    host_memory: Size | None = Field(
        default=None,
        description='Memory of a host that tables with the kernel fused_uvm_caching may take: "1TiB".',
    )
    host: tuple[HostSpec, ...] = Field(default=(), strict=False, description="Hosts that differ from the others.")
    rank: tuple[RankSpec, ...] = Field(default=(), strict=False, description="Devices with another memory.")

    @model_validator(mode="after")
    def _check_totals(self) -> ClusterSpec:
        if self.devices > MAX_DEVICES:
            complaint = f"expected at most {MAX_DEVICES} devices in all, found {self.devices}"
            _reject(complaint, help="hosts x devices_per_host is the number of devices", at=("devices_per_host",))
        self._check_numbers("host", "hosts", self.hosts)
        self._check_numbers("rank", "ranks", self.devices)
        for number, settings in enumerate((self._settings(None), *map(self._settings, self.host))):
            memory = settings.memory_bytes
            at: Path = ("host", number - 1) if number else ("memory",)
            if memory is not None and memory * self.devices > MAX_MEMORY_TOTAL:
                _reject(f"expected at most 4 EiB on all {self.devices} devices, found {settings.memory} on each", at=at)
            at = ("host", number - 1) if number else ("reserve",)
            if memory is not None and settings.reserve_bytes(memory) >= memory:
                _reject(f"expected a reserve below the memory of {settings.memory}, found {settings.reserve}", at=at)
        limits = self.rank_limit_bytes
        for number, section in enumerate(self.rank):
            if too_small := [rank for rank in section.ranks if limits[rank] <= 0]:
                complaint = f"expected more memory than the reserve of rank {too_small[0]}, found {section.memory}"
                _reject(complaint, at=("rank", number, "memory"))
        return self

    def _check_numbers(self, section: str, key: str, count: int) -> None:
        """Refuse hosts or ranks that do not exist, or that two sections are about."""
        seen: set[int] = set()
        for number, entry in enumerate(getattr(self, section)):
            for index, which in enumerate(getattr(entry, key)):
                at = (section, number, key, index)
                if which >= count:
                    _reject(f"expected a {section} from 0 to {count - 1}, found {which}", at=at)
                if which in seen:
                    _reject(f"{section} {which} is in two [[cluster.{section}]] sections", code="SH105", at=at)
                seen.add(which)

    def _settings(self, host: HostSpec | None) -> HostSettings:
        names = HostSettings.__dataclass_fields__
        own = {name: getattr(host, name) for name in names if host is not None}
        return HostSettings(**{name: getattr(self, name) if own.get(name) is None else own[name] for name in names})

    @property
    def kinds(self) -> tuple[HostSettings, ...]:
        """The kinds of hosts that there are, in the order of their first host."""
        return tuple(dict.fromkeys(self._of_hosts))

    @property
    def host_kind(self) -> tuple[int, ...]:
        """For each host its kind."""
        number = {kind: i for i, kind in enumerate(self.kinds)}
        return tuple(number[kind] for kind in self._of_hosts)

    @property
    def device_names(self) -> tuple[str, ...]:
        """The hardware profiles that are named, in the order of their first host."""
        return tuple(dict.fromkeys(kind.device for kind in self.kinds))

    @property
    def rank_limit_bytes(self) -> dict[int, int]:
        """Bytes that tables may take of the devices that differ from their host's others, by rank."""
        limits, settings = {}, self._of_hosts
        for entry in self.rank:
            memory = parse_size(entry.memory) or 0
            for rank in entry.ranks:
                limits[rank] = memory - settings[rank // self.devices_per_host].reserve_bytes(memory)
        return limits

    @property
    def _of_hosts(self) -> list[HostSettings]:
        settings = [self._settings(None)] * self.hosts
        for entry in self.host:
            for which in entry.hosts:
                settings[which] = self._settings(entry)
        return settings

    @property
    def devices(self) -> int:
        """Number of devices; ranks count from 0, host by host."""
        return self.hosts * self.devices_per_host


def _access_schema(schema: dict[str, Any]) -> None:
    """Write the forms of an access distribution as alternatives, which a model of optional fields cannot say."""
    keys = schema.pop("properties")
    forms = [
        {
            "type": "object",
            "properties": {key: keys[key] for key in form},
            "required": [form[0]],
            "additionalProperties": False,
        }
        for form in (("zipf",), ("bins",), ("indices", "table"))
    ]
    for name in ("type", "additionalProperties"):
        schema.pop(name)
    schema["anyOf"] = [{"const": "uniform", "description": "Every row is as likely as any other."}, *forms]


class AccessSpec(_Section):
    """How lookups spread over the rows: "uniform" or exactly one of the members."""

    model_config = ConfigDict(json_schema_extra=_access_schema)

    zipf: float | None = Field(default=None, ge=0, le=5, description="Exponent of a Zipf distribution; 0 is uniform.")
    bins: tuple[Annotated[float, Field(ge=0, le=1 + _BINS_TOLERANCE)], ...] | None = Field(
        default=None,
        strict=False,
        fail_fast=True,
        description="Share of the touched rows that a step looks up once, twice, 3-4 times, 5-8 times ..., 17 bins.",
        json_schema_extra={"minItems": BIN_COUNT, "maxItems": BIN_COUNT},
    )
    indices: Text | None = Field(default=None, description="File of recorded lookups, relative to the spec's folder.")
    table: int | None = Field(default=None, ge=0, description="Which table of that file, from 0, if it has several.")

    @model_validator(mode="before")
    @classmethod
    def _read_uniform(cls, value: Any) -> Any:
        if value == "uniform":
            return {"zipf": 0.0}
        if not isinstance(value, dict | AccessSpec):
            found = _quoted(value) if isinstance(value, str) else _kind(value)
            forms = 'write "uniform", { zipf = 1.05 }, { bins = [17 shares] } or { indices = "file" }'
            code = "SH104" if isinstance(value, str) else "SH103"
            _reject(f"expected an access distribution, found {found}", code=code, help=forms)
        return value

    @model_validator(mode="after")
    def _check_form(self) -> AccessSpec:
        given = [name for name in ("zipf", "bins", "indices") if getattr(self, name) is not None]
        if len(given) != 1:
            _reject(f"expected exactly one of zipf, bins and indices, found {' and '.join(given) or 'none'}")
        if self.table is not None and self.indices is None:
            _reject("the position of a table in an index file goes with indices", at=("table",))
        if self.bins is not None and len(self.bins) != BIN_COUNT:
            _reject(f"expected {BIN_COUNT} shares, found {len(self.bins)}", at=("bins",))
        if self.bins is not None and abs(sum(self.bins) - 1) > _BINS_TOLERANCE:
            _reject(f"expected shares that sum to 1, found a sum of {sum(self.bins):.6g}", at=("bins",))
        return self


class DefaultsSpec(_Section):
    """The `[defaults]` section."""

    rows: int | None = Field(default=None, ge=1, le=10**12, description="Rows of the table (its hash size).")
    dim: Dim | None = Field(default=None, description="Elements of an embedding vector, a multiple of 4.")
    pooling: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Mean lookups a sample (the pooling factor), over all features of the table.",
    )
    access: AccessSpec | None = Field(default=None, description="How lookups spread over the rows; default uniform.")
    sharding: Sharding | None = Field(default=None, description="Allowed sharding types; all unless given.")
    kernels: Kernels | None = Field(
        default=None,
        description="Allowed kernels; fused unless given. fused_uvm_caching keeps the table in host memory and caches "
        "rows on the device, and a table that may have nothing else is not data-parallel.",
    )
    cache_ratio: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of the rows that the cache of fused_uvm_caching has room for; default 0.2.",
    )


class TableSpec(DefaultsSpec):
    """A `[[table]]` section, or a row of the table file."""

    name: Name = Field(description="Name of the table, as in the PyTorch model.")
    features: Features | None = Field(default=None, description="Features looked up in it; default its name.")
    pin: Ranks | None = Field(default=None, description="The only ranks that may hold a piece of the table.")
    group: Text | None = Field(
        default=None, description="Tables that share a group are placed whole on one common device."
    )
    apart: Text | None = Field(default=None, description="Tables of one such set are placed on different devices.")


class TablesSpec(_Section):
    """The `[tables]` section."""

    file: Text = Field(description="CSV file, relative to the spec's folder: one row a table, the keys as columns.")


class CompileSpec(_Section):
    """The `[compile]` section."""

    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="Seed of every random choice: one seed, one plan.")
    effort: Literal["fast", "balanced", "thorough"] = Field(default="balanced", description="How long to search.")
    cost: Literal["profile", "torchrec"] = Field(
        default="profile",
        description="What placements are judged by: the device's hardware profile, or TorchRec's own estimates.",
    )
    quantile: float | None = Field(
        default=None,
        ge=0.5,
        le=0.99,
        description="Plan with times that this share of devices stays below, instead of with the best estimate.",
    )


Grade = Literal["error", "warning", "off"]


class SeveritySpec(_Section):
    """The `severity` of findings, by code: an error fails a check, a warning is told, what is off is not looked for."""

    SH311: Grade = Field(default="error", description="The spec has changed since its plan was compiled (--frozen).")
    SH401: Grade = Field(default="error", description="The step takes longer than the plan states (step_time).")
    SH402: Grade = Field(default="error", description="The step time is too far above its lower bound (gap).")
    SH403: Grade = Field(default="error", description="A newly compiled plan is better (improvement).")
    SH404: Grade = Field(default="error", description="The devices are not balanced (balance).")
    SH405: Grade = Field(default="error", description="Too little device memory is left free (headroom).")
    SH406: Grade = Field(default="warning", description="The hardware profile has changed since.")
    SH407: Grade = Field(default="error", description="Too much would have to move (moved).")
    SH408: Grade = Field(default="error", description="A device's time changes too much (device_time).")
    SH409: Grade = Field(default="error", description="A device's memory changes too much (device_memory).")
    SH410: Grade = Field(default="warning", description="There is no older plan to check moved or device_* against.")


class BudgetSpec(_Section):
    """The `[budget]` section."""

    step_time: Percent = Field(default="2%", description="How much slower than the committed plan a step may become.")
    gap: Percent | None = Field(default=None, description="How far above its lower bound the step time may be.")
    improvement: Percent = Field(
        default="0.1%",
        description="How much better a newly compiled plan may be than the committed one.",
    )
    balance: Share | None = Field(
        default=None,
        description="Least degree of balance: the least compute time of a device, as a share of the greatest: "
        '"96%" or 0.96.',
    )
    headroom: Share | None = Field(
        default=None,
        description="Least share of the memory that tables may take of a device which stays free on the fullest one: "
        '"10%" or 0.1.',
    )
    moved: Moved | None = Field(
        default=None,
        description="Most that has to be copied to get from the plan of --base to this one: "
        'of the bytes of all shards "5%", or "2GiB".',
    )
    device_time: Percent | None = Field(
        default=None,
        description="Most that a device's compute time may differ from the plan of --base, as a share of the greatest.",
    )
    device_memory: Percent | None = Field(
        default=None,
        description="Most that a device's memory may differ from the plan of --base, as a share of its limit.",
    )
    severity: SeveritySpec = Field(
        default=SeveritySpec(), description="What findings are, by code: error, warning or off."
    )

    def limit(self, name: str) -> float | None:
        """Return a limit as a fraction, None where there is none."""
        given = getattr(self, name)
        return _percent(given) if isinstance(given, str) else given

    @property
    def may_move(self) -> MoveBudget | None:
        """What `moved` allows; None where there is no such limit."""
        return None if self.moved is None else MoveBudget.parse(self.moved)

    def grade(self, code: str) -> Grade:
        """Return what findings of a code are: error, unless the spec or the code says otherwise."""
        return getattr(self.severity, code, "error")


class Spec(_Section):
    """An embedding-sharding spec for shardc."""

    model_config = ConfigDict(title="shardc spec")

    format: Annotated[Literal[1], BeforeValidator(_format_version)] = Field(description="Version of this format: 1.")
    model: ModelSpec = Field(description="The model whose embedding tables are sharded.")
    cluster: ClusterSpec = Field(description="The devices that the tables are spread over.")
    defaults: DefaultsSpec = Field(
        default_factory=DefaultsSpec, description="What holds for every table that does not say otherwise."
    )
    table: tuple[TableSpec, ...] = Field(default=(), strict=False, description="The embedding tables.")
    tables: TablesSpec | None = Field(default=None, description="More tables, from a CSV file.")
    compile: CompileSpec = Field(default=CompileSpec(), description="How the plan is searched for.")
    budget: BudgetSpec = Field(default=BudgetSpec(), description="What `shardc check` enforces.")


# --- The resolved form ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Zipf:
    """Lookups follow a Zipf distribution over the rows; exponent 0 is uniform."""

    exponent: float


@dataclass(frozen=True, slots=True)
class Bins:
    """The share of unique rows in each of 17 bins of access counts; the shares sum to 1 within 1e-3."""

    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class IndexFile:
    """Recorded lookups; the path is as written, `LoadedSpec.resolve` makes it relative to the spec's folder.

    `table` is the position in a file of several tables, from 0; None where the file has only one.
    """

    path: str
    table: int | None = None


Access = Zipf | Bins | IndexFile


@dataclass(frozen=True, slots=True)
class Table:
    """One table with defaults filled in; `origin` is the key path of its entry, ("tables", row) for a CSV row.

    What follows it no spec says, but a framework may: `bags` are the mean bags of a sample (None: one for each
    feature), of a table that is not `pooled` every lookup is an output of its own, and no column block is narrower
    than `least_width`, nor wider if not `pooled`.
    """

    name: str
    features: tuple[str, ...]
    rows: int
    dim: int
    pooling: float
    access: Access
    sharding: tuple[str, ...]
    kernels: tuple[str, ...]
    cache_ratio: float
    pin: tuple[int, ...] | None
    group: str | None
    apart: str | None
    origin: Path = field(default=(), compare=False, repr=False)
    bags: float | None = None
    pooled: bool = True
    least_width: int = 4

    @property
    def may_be_cached(self) -> bool:
        """Whether the table may be in host memory, with a cache on the device."""
        return _CACHING in self.kernels


@dataclass(frozen=True, slots=True)
class _Sources:
    """The texts that a spec was read from, as far as there are any, and what was set in place of them."""

    toml: Source | None = None
    csv: CsvSource | None = None
    settings: Mapping[Path, Setting] = field(default_factory=dict)

    def locate(self, path: Path, *, key: bool = False) -> Location | None:
        if at := self._find_set(path, key=key):
            return at
        if _in_csv(path):
            return self.csv.locate(path[1:], key=key) if self.csv else None
        return self.toml.locate(path, key=key) if self.toml else None

    def locate_field(self, origin: Path, name: str) -> Location | None:
        """Return where a table's field is given: in its entry, else in [defaults], else the entry itself."""
        return self._find((*origin, name)) or self._find(("defaults", name)) or self.locate(origin)

    def _find(self, path: Path) -> Location | None:
        if at := self._find_set(path):
            return at
        if _in_csv(path):
            return self.csv.find(path[1:]) if self.csv else None
        return self.toml.find(path) if self.toml else None

    def _find_set(self, path: Path, *, key: bool = False) -> Location | None:
        """Return where a value was set, if it was."""
        for length in range(len(path), 0, -1):
            if setting := self.settings.get(path[:length]):
                return setting.at(length - 1 if key and length == len(path) else None)
        return None


def _in_csv(path: Path) -> bool:
    return len(path) > 1 and path[0] == "tables" and isinstance(path[1], int)


@dataclass(frozen=True, slots=True)
class LoadedSpec:
    """A valid spec: as written, and its tables resolved and sorted by name."""

    spec: Spec
    tables: tuple[Table, ...]
    path: str | None = None
    _sources: _Sources = field(default=_Sources(), compare=False, repr=False)
    _written: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    _settings: tuple[Setting, ...] = field(default=(), compare=False, repr=False)

    def changed(self, settings: Sequence[Setting]) -> LoadedSpec:
        """Return the spec with settings in place of what it says.

        Raises:
            DiagnosticError: everything that is wrong then; exit code 2 for a setting of what there is not.
        """
        if self._written is None:
            raise ValueError("only a spec that was written can be changed")
        return _Reader(self._written, _Sources(self._sources.toml), self.path, (*self._settings, *settings)).read()

    def at(self, *keys: str | int, key: bool = False) -> Location | None:
        """Return where a value (or its key) stands, as in ``at("cluster", "device")``; None without a file."""
        return self._sources.locate(keys, key=key)

    def at_table(self, table: Table, name: str | None = None) -> Location | None:
        """Return where a table, or one of its fields, is given; None without a file."""
        return self._sources.locate_field(table.origin, name) if name else self._sources.locate(table.origin)

    def at_device(self, name: str) -> Location | None:
        """Return where a hardware profile is named, for the cluster or first for some of its hosts."""
        cluster = self.spec.cluster
        if name != cluster.device:
            for number, host in enumerate(cluster.host):
                if name == host.device:
                    return self.at("cluster", "host", number, "device")
        return self.at("cluster", "device")

    @property
    def cached_tables(self) -> tuple[Table, ...]:
        """The tables that may be in host memory, with a cache on the device."""
        return tuple(table for table in self.tables if table.may_be_cached)

    def resolve(self, path: str) -> str:
        """Return a path that the spec gives relative to its own folder."""
        return os.path.join(os.path.dirname(self.path or ""), path)

    @property
    def files(self) -> dict[str, str]:
        """What the spec was read from and refers to: the path of each file, and what it is to the user."""
        found = {self.path: "spec"} if self.path else {}
        if self.spec.tables:
            found[self.resolve(self.spec.tables.file)] = "spec's table file"
        for table in self.tables:
            if isinstance(table.access, IndexFile):
                found[self.resolve(table.access.path)] = "index file of some tables"
        return found

    def digest(self) -> str:
        """Return "sha256:…" of what decides the plan.

        Neither formatting, comments and the order of tables nor the budget change it.
        """
        cluster = self.spec.cluster
        # Not asdict of the tables: of a hundred thousand it would copy every member, for half a minute.
        names = [member.name for member in fields(Table)]
        tables = [
            {name: getattr(table, name) for name in names} | {"access": asdict(table.access)} for table in self.tables
        ]
        caching = self.cached_tables
        for table, resolved in zip(tables, self.tables, strict=True):
            for name in ("origin", "bags", "pooled", "least_width"):
                del table[name]
            # Plans of specs that say nothing of the host's memory keep the digests that they had before one could.
            if not resolved.may_be_cached:
                del table["kernels"], table["cache_ratio"]
        content = {
            "format": self.spec.format,
            "model": self.spec.model.model_dump(),
            "cluster": {
                "devices_per_host": cluster.devices_per_host,
                "hosts": cluster.host_kind,
                "kinds": [
                    {
                        "device": kind.device,
                        "reserve": parse_share_or_size(kind.reserve),
                        "memory": kind.memory_bytes,
                        "intra_host_bandwidth": kind.intra_bytes_per_s,
                        "inter_host_bandwidth": kind.inter_bytes_per_s,
                    }
                    | ({"host_memory": kind.host_memory_bytes} if caching else {})
                    for kind in cluster.kinds
                ],
                "ranks": sorted(cluster.rank_limit_bytes.items()),
            },
            "compile": self.spec.compile.model_dump(),
            "tables": tables,
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


# --- Reading ----------------------------------------------------------------------------------------------------------


def load_spec(path: str | os.PathLike[str], settings: Sequence[Setting] = ()) -> LoadedSpec:
    """Read a spec file and the table file that it names.

    Args:
        path: the file.
        settings: in place of what the file says.

    Raises:
        DiagnosticError: everything that is wrong, in the order of the file; exit code 2 if a file cannot be read.
    """
    name = os.fspath(path)
    source = Source(name, read_text(name, "spec", MAX_SPEC_BYTES))
    return _Reader(_parse_toml(source), _Sources(source), name, settings).read()


def parse_spec(data: Mapping[str, Any]) -> LoadedSpec:
    """Validate a spec given as nested dicts, of the same shape as the TOML file.

    Paths in it are relative to the working directory.

    Raises:
        DiagnosticError: everything that is wrong, without positions.
    """
    return _Reader(data, _Sources(), None).read()


def _parse_toml(source: Source) -> dict[str, Any]:
    if not source.text.strip():
        fix = "it needs format, [model], [cluster] and tables: shardc init writes a spec of a model"
        raise DiagnosticError(Diagnostic("SH102", f"the spec {source.file} is empty", help=fix))
    try:
        return tomli.loads(source.text)
    except tomli.TOMLDecodeError as error:
        if mark := CONFLICT.search(source.text):
            line = source.text.count("\n", 0, mark.start()) + 1
            at = source.line(line, 1, len(mark[0].rstrip()))
            raise DiagnosticError(
                Diagnostic("SH100", "the spec has conflicts of a merge", at, "resolve them")
            ) from None
        # tomli stops behind a key that is given twice; what it means is the whole statement.
        at = source.line(error.lineno, error.colno)
        if error.msg.startswith("Cannot"):
            statement = at.text.strip()
            at = source.line(at.line, at.text.index(statement) + 1, len(statement))
        finding = Diagnostic("SH100", f"not valid TOML: {_plain(error.msg)}", at)
    except RecursionError:
        finding = Diagnostic("SH100", "not valid TOML: arrays or tables are nested too deeply", source.line(1))
    except ValueError:
        # Python refuses to convert an integer of thousands of digits; tomli says neither this nor where.
        finding = Diagnostic("SH100", "not valid TOML: a number or date cannot be read", _longest_number(source))
    raise DiagnosticError(finding) from None


def _plain(message: str) -> str:
    """Write the key paths in tomli's messages, Python tuples, as TOML writes them."""
    keys = re.sub(r"\((.*?),?\)", lambda match: '"' + ".".join(re.findall(r"'(.*?)'", match[1])) + '"', message)
    return keys[:1].lower() + keys[1:]


def _longest_number(source: Source) -> Location:
    longest = max(re.finditer(r"[0-9_]*", source.text), key=lambda match: len(match[0]))
    line_start = source.text.rfind("\n", 0, longest.start()) + 1
    line = source.text.count("\n", 0, line_start) + 1
    return source.line(line, longest.start() - line_start + 1, len(longest[0]))


_SpecModel = TypeVar("_SpecModel", bound=BaseModel)


@dataclass(slots=True)
class _Entry:
    """A table on its way from what is written to what is resolved; None where it is not valid."""

    origin: Path
    raw: Any
    spec: TableSpec | None = None
    table: Table | None = None

    @property
    def label(self) -> str:
        name = self.raw.get("name") if isinstance(self.raw, dict) else None
        return f"table {_quoted(name)}" if isinstance(name, str) else f"table number {int(self.origin[1]) + 1}"


class _Reader:
    """Validates one spec, going on after each error with what is valid."""

    def __init__(
        self, written: Mapping[str, Any], sources: _Sources, path: str | None, settings: Sequence[Setting] = ()
    ) -> None:
        self.written = written
        self.data = dict(written)
        self.sources = sources
        self.path = path
        self.settings = tuple(settings)
        self.set_at: dict[Path, Setting] = {}
        self.findings: list[Diagnostic] = []
        self.entries: dict[Path, _Entry] = {}

    def read(self) -> LoadedSpec:
        self._apply_settings()
        written = self.data.get("table")
        if isinstance(written, list | tuple) and len(written) > MAX_TABLES:
            self._refuse_so_many(len(written), ("table", MAX_TABLES))
        if isinstance(written, list | tuple):
            self.entries = {("table", i): _Entry(("table", i), raw) for i, raw in enumerate(written)}
        # Tables one by one: pydantic would collect what is wrong with all of them.
        spec = self._validate(Spec, {**self.data, "table": ()} if self.entries else self.data, ())
        if any(finding.code == "SH109" for finding in self.findings):
            self._stop()
        for entry in self.entries.values():
            entry.spec = self._validate(TableSpec, entry.raw, entry.origin)
        tables = tuple(entry.spec for entry in self.entries.values() if entry.spec is not None)
        self._read_csv()
        self._check_settings()
        self._check_any_table(written)
        self._check_duplicates()
        defaults = _attempt(DefaultsSpec, self.data.get("defaults", {}))
        cluster = _attempt(ClusterSpec, self.data.get("cluster"))
        for entry in self.entries.values():
            if entry.spec is not None:
                entry.table = self._resolve(entry, entry.spec, defaults)
        self._check_elements()
        self._check_constraints(cluster.devices if cluster else None)
        if cluster and not any(kind.host_memory for kind in cluster.kinds):
            self._check_no_cache()
        if self.findings or spec is None:
            self._stop()
        resolved = sorted((cast(Table, entry.table) for entry in self.entries.values()), key=lambda table: table.name)
        spec = spec.model_copy(update={"table": tables})
        return LoadedSpec(spec, tuple(resolved), self.path, self.sources, self.written, self.settings)

    def _refuse_so_many(self, count: int, at: Path) -> NoReturn:
        message = f"expected at most {MAX_TABLES} tables, found {count}"
        self.findings = [Diagnostic("SH104", message, self.sources.locate(at))]
        self._stop()

    def _apply_settings(self) -> None:
        """Change what is written; rows of a table file follow when they are read."""
        if not self.settings:
            return
        self.sources = replace(self.sources, settings=self.set_at)
        self.data = copy.deepcopy(self.data)
        for path, setting in apply(self.settings, self.data):
            self._note(path, setting)
        written = self.data.get("table")
        if isinstance(written, list):
            self.data["table"] = [self._with_settings(raw, ("table", i)) for i, raw in enumerate(written)]

    def _with_settings(self, raw: Any, origin: Path) -> Any:
        """Return a table's entry as the settings have it."""
        if not isinstance(raw, dict) or not self.settings:
            return raw
        changed, about = apply_to_table(self.settings, raw)
        for setting in about:
            self._note((*origin, *setting.keys[2:]), setting)
        return changed

    def _note(self, path: Path, setting: Setting) -> None:
        """Remember where a value comes from, and the section if it is there only for it."""
        if path[0] not in self.written:
            self.set_at.setdefault(path[:1], setting)
        self.set_at[path] = setting

    def _check_settings(self) -> None:
        """Refuse settings of tables that there are not."""
        used = {id(setting) for setting in self.set_at.values()}
        for setting in self.settings:
            if setting.of_table and id(setting) not in used:
                names = [entry.raw.get("name") for entry in self.entries.values() if isinstance(entry.raw, dict)]
                if any(setting.names(name) for name in names):
                    continue  # a later setting is of the same key
                known = [name for name in names if isinstance(name, str)]
                advice = _suggestion(setting.keys[1], known) or f"it has {quoted_tables(known)}"
                message = f"{setting.option}: the spec has no table {_quoted(setting.keys[1])}"
                self._add("SH331", message, setting.at(1), advice)

    def _stop(self) -> NoReturn:
        toml = self.sources.toml

        def position(finding: Diagnostic) -> tuple[bool, int, int]:
            at = finding.location
            return (bool(toml and at.file != toml.file), at.line, at.column) if at else (True, 0, 0)

        # Keys of a format that we do not know would only be noise.
        findings = [finding for finding in self.findings if finding.code == "SH109"] or self.findings
        unreadable = any(finding.code.startswith("SH0") or finding.code == "SH331" for finding in findings)
        raise DiagnosticError(*first_of(sorted(findings, key=position)), exit_code=2 if unreadable else 1)

    def _add(
        self, code: str, message: str, at: Location | None, help: str | None = None, notes: tuple[str, ...] = ()
    ) -> None:
        """Add a finding; after very many, nothing else is looked for."""
        self.findings.append(Diagnostic(code, message, at, help, notes=notes))
        if len(self.findings) > MOST_FINDINGS:
            self._stop()

    def _validate(self, model: type[_SpecModel], data: Any, base: Path) -> _SpecModel | None:
        try:
            return model.model_validate(data)
        except ValidationError as failure:
            for error in failure.errors(include_url=False):
                self._report(error, base + error["loc"])
            return None

    def _report(self, error: ErrorDetails, path: Path) -> None:
        """Say in our words what pydantic found wrong at a path."""
        context, value, kind = error.get("ctx", {}), error["input"], error["type"]
        key = kind in ("extra_forbidden", "invalid_key")
        code, advice = "SH104", None
        if key:
            *parent, unknown = path
            options = list(_model_at(tuple(parent)).model_fields)
            message = f"unknown key {_quoted(unknown)} in {self._section(tuple(parent))}"
            code, advice = "SH101", _suggestion(unknown, options) or f"known keys: {', '.join(options)}"
            if unknown in CODES and tuple(parent) == ("budget", "severity"):
                message = f"the severity of {unknown} cannot be set: it is not about a budget"
                advice = f"codes whose severity can be set: {', '.join(options)}"
        elif kind == "missing":
            *parent, missing = path
            message = f'missing key "{missing}" in {self._section(tuple(parent))}'
            code, advice = "SH102", f"add {_meaning(_model_at(tuple(parent)), missing)}"
        else:
            path += context.get("at", ())
            code, complaint, advice = _complaint(kind, value, context)
            if path in (("table",), ("cluster", "host"), ("cluster", "rank")) and isinstance(value, dict):
                advice = f"write [[{_dotted(path)}]], with two brackets"
            message = f"{self._label(path)}: {complaint}"
        self._add(code, message, self.sources.locate(path, key=key), advice)

    def _label(self, path: Path) -> str:
        """Name a place of the spec for a message."""
        entry = self.entries.get(path[:2])
        if entry is None:
            return _dotted(path) or "the spec"
        return f"{_dotted(path[2:])} of {entry.label}" if path[2:] else entry.label

    def _section(self, path: Path) -> str:
        """Name a place that has keys."""
        return f"[{path[0]}]" if len(path) == 1 else self._label(path)

    def _flag(self, code: str, entry: _Entry, name: str, message: str, **details: Any) -> None:
        """Report a finding about a field of a table."""
        self._add(code, f"{entry.label} {message}", self.sources.locate_field(entry.origin, name), **details)

    def _read_csv(self) -> None:
        section = _attempt(TablesSpec, self.data.get("tables"))
        if section is None:
            return
        name = os.path.join(os.path.dirname(self.path or ""), section.file)
        # What cannot be read of it is shown, and a spec may come from a stranger.
        if self.path is not None and not is_within(name, os.path.dirname(self.path)):
            message, at = f"the table file {name} is not in the spec's folder", self.sources.locate(("tables", "file"))
            fix = "put it there, or the spec above it; links do not count"
            self._add("SH002", message, at, fix)
            return
        if self.path is not None and is_hidden(name, os.path.dirname(self.path)):
            message = f"the table file {name} is hidden, as files with secrets are"
            self._add("SH002", message, self.sources.locate(("tables", "file")), "name it otherwise")
            return
        try:
            csv = CsvSource(name, read_text(name, "table file", MAX_SPEC_BYTES))
        except DiagnosticError as error:
            named = self.sources.locate(("tables", "file"))
            self.findings += [replace(found, location=found.location or named) for found in error.diagnostics]
            return
        self.sources = replace(self.sources, csv=csv)
        columns = self._check_header(csv)
        if len(csv.rows) > MAX_TABLES:
            self._refuse_so_many(len(csv.rows), ("tables", MAX_TABLES))
        for number, row in enumerate(csv.rows):
            origin: Path = ("tables", number)
            if len(row) != len(csv.header):
                message = f"expected {len(csv.header)} cells, found {len(row)}"
                self._add("SH108", message, csv.locate((number,)), 'quote cells that have ","')
                continue
            cells = {column: row[index].value for column, index in columns.items() if row[index].value}
            raw = {column: _cell_value(column, cell) for column, cell in cells.items()}
            raw = self._with_settings(raw, origin)
            self.entries[origin] = entry = _Entry(origin, raw)
            entry.spec = self._validate(TableSpec, raw, origin)

    def _check_header(self, csv: CsvSource) -> dict[str, int]:
        """Return the index of each column that has a known name, once."""
        known = list(TableSpec.model_fields)
        columns: dict[str, int] = {}
        for index, cell in enumerate(csv.header):
            if cell.value not in known:
                advice = _suggestion(cell.value, known) or f"known columns: {', '.join(known)}"
                self._add("SH101", f"unknown column {_quoted(cell.value)}", csv.cell(cell), advice)
            elif cell.value in columns:
                self._add("SH105", f'column "{cell.value}" is there twice', csv.cell(cell))
            else:
                columns[cell.value] = index
        return columns

    def _check_any_table(self, written: Any) -> None:
        csv = self.sources.csv
        if not written and ("tables" not in self.data or (csv and not csv.rows)):
            at = self.sources.locate(("tables", "file"))
            advice = "add a [[table]] section, or rows to the file that [tables] names"
            self._add("SH102", "the spec has no tables", at, advice)

    def _check_duplicates(self) -> None:
        first: dict[str, _Entry] = {}
        for entry in self.entries.values():
            name = entry.raw.get("name") if isinstance(entry.raw, dict) else None
            if isinstance(name, str) and (other := first.setdefault(name, entry)) is not entry:
                where = self.sources.locate_field(other.origin, "name")
                self._flag("SH105", entry, "name", "is there twice", notes=(f"first at {where}",) if where else ())

    def _resolve(self, entry: _Entry, spec: TableSpec, defaults: DefaultsSpec | None) -> Table | None:
        """Fill in the defaults; None if something is missing, or only there in defaults that are not valid."""
        given: dict[str, Any] = {}
        for name in DefaultsSpec.model_fields:
            own = getattr(spec, name)
            given[name] = getattr(defaults, name, None) if own is None else own
        missing = [name for name in ("rows", "dim", "pooling") if given[name] is None]
        if missing and defaults is None:
            return None
        for name in missing:
            at = self.sources.locate(entry.origin)
            advice = f"add it here or under [defaults]: {_meaning(TableSpec, name)}"
            self._add("SH102", f'missing key "{name}" in {entry.label}', at, advice)
        if missing:
            return None
        return Table(
            name=spec.name,
            features=spec.features or (spec.name,),
            rows=given["rows"],
            dim=given["dim"],
            pooling=float(given["pooling"]),
            access=_access(given["access"]),
            sharding=tuple(kind for kind in SHARDING_TYPES if kind in (given["sharding"] or SHARDING_TYPES)),
            kernels=tuple(kernel for kernel in KERNELS if kernel in (given["kernels"] or _USUAL_KERNELS)),
            cache_ratio=CACHE_RATIO if given["cache_ratio"] is None else float(given["cache_ratio"]),
            pin=tuple(sorted(spec.pin)) if spec.pin else None,
            group=spec.group,
            apart=spec.apart,
            origin=entry.origin,
        )

    def _check_elements(self) -> None:
        """Refuse so many elements in all that their bytes have no sum in int64."""
        total = 0
        for entry in self.entries.values():
            total += entry.table.rows * entry.table.dim if entry.table else 0
            if total > _MAX_ELEMENTS:
                most = f"at most 2**58 elements (rows x dim) in all tables, found {total:.3g} up to here"
                self._flag("SH104", entry, "rows", f"is one too many: expected {most}")
                return

    def _check_no_cache(self) -> None:
        """Refuse tables that may be in host memory where nobody said how much there is: once, for all of them."""
        cached = [entry for entry in self.entries.values() if entry.table and entry.table.may_be_cached]
        if cached:
            at = self.sources.locate_field(cached[0].origin, "kernels")
            named = quoted_tables([cast(Table, entry.table).name for entry in cached])
            advice = 'add host_memory = "1TiB" under [cluster]: what tables may take of one host'
            message = f"{named} may be in host memory, and none is given for tables"
            self._add("SH113", message, at, help=advice)

    def _check_constraints(self, devices: int | None) -> None:
        """Find placement constraints that no placement can meet."""
        resolved = [(entry, entry.table) for entry in self.entries.values() if entry.table]
        for entry, table in resolved:
            if devices is not None and table.pin:
                self._check_pin(entry, table, devices)
            if table.sharding == (_REPLICATED,) and "fused" not in table.kernels:
                reason = "may be in host memory only, and data_parallel keeps it on the devices"
                self._flag("SH106", entry, "kernels", reason, help='add "fused" to kernels, or allow another sharding')
        ranks = frozenset(range(devices)) if devices is not None else None
        group_pins = {name: self._check_group(members) for name, members in _sets(resolved, "group")}
        for name, members in _sets(resolved, "apart"):
            self._check_apart(name, members, group_pins, ranks)

    def _check_pin(self, entry: _Entry, table: Table, devices: int) -> None:
        pin = cast(TableSpec, entry.spec).pin or ()
        for index, rank in enumerate(pin):
            if rank >= devices:
                path = (*entry.origin, "pin", index)
                message = f"{self._label(path)}: expected a rank from 0 to {devices - 1}, found {rank}"
                self._add("SH104", message, self.sources.locate(path))
        if len(pin) < devices and set(table.sharding) <= _ON_EVERY_DEVICE:
            needs = f"is pinned to {len(pin)} of {devices} ranks, but its sharding needs every rank"
            self._flag("SH106", entry, "pin", needs, help="remove the pin, or allow table_wise or column_wise")

    def _check_group(self, members: Sequence[tuple[_Entry, Table]]) -> frozenset[int] | None:
        """Check one group; return the ranks that all its pins allow, None if there are no pins."""
        common: frozenset[int] | None = None
        seen: dict[str, str] = {}
        for entry, table in members:
            if "table_wise" not in table.sharding:
                reason = f"is in group {_quoted(table.group)}, but may not be placed whole"
                self._flag("SH106", entry, "sharding", reason, help='allow "table_wise"')
            if table.apart is not None:
                other = seen.setdefault(table.apart, table.name)
                if other != table.name:
                    reason = f"must be with and apart from table {_quoted(other)}"
                    self._flag("SH106", entry, "apart", reason, help="two tables of a group cannot be kept apart")
            if table.pin is not None:
                both = frozenset(table.pin) if common is None else common & frozenset(table.pin)
                if not both:
                    reason = f"is pinned to no rank that the others of group {_quoted(table.group)} may use"
                    self._flag("SH106", entry, "pin", reason, help="a group is placed on one common device")
                common = both or common
        return common

    def _check_apart(
        self,
        name: str,
        members: Sequence[tuple[_Entry, Table]],
        group_pins: Mapping[str, frozenset[int] | None],
        ranks: frozenset[int] | None,
    ) -> None:
        """Check that a set of tables can be on different devices; tables of one group count as one."""
        for entry, table in members:
            if set(table.sharding) <= _ON_EVERY_DEVICE:
                reason = f"is in the apart set {_quoted(name)}, but its sharding uses every device"
                self._flag("SH106", entry, "sharding", reason, help='allow "table_wise" or "column_wise"')
        units: dict[tuple[str, str], tuple[_Entry, frozenset[int] | None]] = {}
        for entry, table in members:
            unit = ("group", table.group) if table.group else ("table", table.name)
            pin = group_pins[table.group] if table.group else table.pin and frozenset(table.pin)
            units[unit] = (entry, pin or ranks)
        # Hall's condition for the sets of ranks that occur: as many units need as many ranks.
        allowed = {pin for _, pin in units.values() if pin is not None}
        if ranks is not None and len(units) > len(ranks):
            allowed = {ranks}  # which is at once known not to hold, whatever the pins are
        for pin in sorted(allowed, key=len):
            crowd = [entry for entry, own in units.values() if own is not None and own <= pin]
            if len(crowd) > len(pin):
                where = "devices" if pin == ranks else "pinned rank" + "s" * (len(pin) > 1)
                reason = f"cannot be kept apart: {len(crowd)} of the set {_quoted(name)} share {len(pin)} {where}"
                advice = "take tables out of the set; tables of one group count as one"
                self._flag("SH106", crowd[len(pin)], "apart", reason, help=advice)
                return


def _attempt(model: type[_SpecModel], data: Any) -> _SpecModel | None:
    try:
        return model.model_validate(data)
    except ValidationError:
        return None


def _sets(
    tables: Iterable[tuple[_Entry, Table]], name: Literal["group", "apart"]
) -> Iterator[tuple[str, list[tuple[_Entry, Table]]]]:
    """Yield the tables that share a group or an apart set, by its name."""
    sets: dict[str, list[tuple[_Entry, Table]]] = {}
    for entry, table in tables:
        if label := getattr(table, name):
            sets.setdefault(label, []).append((entry, table))
    yield from sets.items()


def _access(spec: AccessSpec | None) -> Access:
    if spec is None:
        return Zipf(0.0)
    if spec.bins is not None:
        return Bins(tuple(map(float, spec.bins)))
    if spec.indices is not None:
        return IndexFile(spec.indices, spec.table)
    return Zipf(float(spec.zipf or 0.0))


def _cell_value(column: str, text: str) -> Any:
    """Return a CSV cell as TOML would give it; text that does not fit stays text, for validation to refuse."""
    if column in ("rows", "dim"):
        return _converted(int, text)
    if column in ("pooling", "cache_ratio"):
        return _converted(float, text)
    if column == "pin":
        return [_converted(int, part.strip()) for part in text.split(";")]
    if column in ("features", "sharding", "kernels"):
        return [part.strip() for part in text.split(";")]
    if column == "access" and "=" in text:
        form, _, value = (part.strip() for part in text.partition("="))
        if form == "bins":
            return {form: [_converted(float, part.strip()) for part in value.split(";")]}
        if form == "indices" and (named := re.fullmatch(r"(.*);\s*table\s*=\s*(.*)", value)):
            return {form: named[1].rstrip(), "table": _converted(int, named[2])}
        return {form: _converted(float, value) if form == "zipf" else value}
    return text


def _converted(kind: type[int] | type[float], text: str) -> int | float | str:
    try:
        return kind(text)
    except ValueError:
        return text


# --- Words ------------------------------------------------------------------------------------------------------------

_TYPES = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "tuple_type": "an array",
    "model_type": "a table",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_SECTIONS: dict[str | int, type[BaseModel]] = {
    "model": ModelSpec,
    "cluster": ClusterSpec,
    "defaults": DefaultsSpec,
    "table": TableSpec,
    "tables": TablesSpec,
    "compile": CompileSpec,
    "budget": BudgetSpec,
}


def _complaint(kind: str, value: Any, context: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """Return code, complaint and help for a pydantic error about a value."""
    if kind == "shardc":
        return context["code"], context["complaint"], context["help"]
    if kind == "literal_error":
        options = re.findall(r"'(.*?)'", context["expected"])
        expected = "one of " + ", ".join(map(_quoted, options))
        if not isinstance(value, str):
            return "SH103", f"expected {expected}, found {_kind(value)}", None
        return "SH104", f"expected {expected}, found {_quoted(value)}", _suggestion(value, options)
    if kind in _TYPES and not (kind == "float_type" and type(value) is int):
        whole = kind == "int_type" and isinstance(value, float) and value.is_integer()
        return "SH103", f"expected {_TYPES[kind]}, found {_kind(value)}", f"write {int(value)}" if whole else None
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return "SH104", f"expected {words} {context[bound]:.15g}, found {_quoted(value)}", None
    return "SH104", f"expected a finite number, found {_quoted(value)}", None


def _model_at(path: Path) -> type[BaseModel]:
    """Return the model whose keys are allowed at a path."""
    if not path:
        return Spec
    if path[-1] == "access":
        return AccessSpec
    if path == ("budget", "severity"):
        return SeveritySpec
    if path[0] == "cluster" and len(path) > 1:
        return HostSpec if path[1] == "host" else RankSpec
    return TableSpec if _in_csv(path) else _SECTIONS[path[0]]


def _kind(value: Any) -> str:
    """Name what a value is, in the words of TOML."""
    match value:
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return f"the number {value}"
        case str():
            return "a string"
        case list() | tuple():
            return "an array"
        case dict():
            return "a table"
    return f"a {type(value).__name__}"


def _quoted(value: Any) -> str:
    """Show a value in a message, cut to a reasonable length."""
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}…"'
    if isinstance(value, int) and abs(value) > _INT64_MAX:
        return "an integer beyond 64 bits"
    return str(value)


def _dotted(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _meaning(model: type[BaseModel], name: str | int) -> str:
    """Return a key with its description, for a help line."""
    text = model.model_fields[str(name)].description or ""
    return f"{name}: {text[:1].lower()}{text[1:].removesuffix('.')}"


def _suggestion(word: object, options: Sequence[str]) -> str | None:
    # Only errors need difflib, and it is quadratic in the length of the word.
    from difflib import get_close_matches

    close = get_close_matches(word, options, n=1, cutoff=0.65) if isinstance(word, str) and len(word) <= 60 else []
    return f'did you mean "{close[0]}"?' if close else None


# --- The JSON Schema --------------------------------------------------------------------------------------------------


def spec_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft-07) of a spec file, with which TOML editors complete and document it."""
    schema = Spec.model_json_schema(ref_template="#/definitions/{model}")
    schema["definitions"] = schema.pop("$defs")
    return {"$schema": "http://json-schema.org/draft-07/schema#", **_draft07(schema)}


def _draft07(node: Any) -> Any:
    """Rewrite what pydantic generates for TOML and draft-07: no nulls, and nothing beside a $ref."""
    if isinstance(node, list):
        return [_draft07(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _draft07(value) for key, value in node.items() if value is not None}
    options = [option for option in node.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        del node["anyOf"]
        node = {**options[0], **node}
    elif options:
        node["anyOf"] = options
    if "$ref" in node and len(node) > 1:
        node["allOf"] = [{"$ref": node.pop("$ref")}]
    return node

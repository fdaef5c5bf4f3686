"""The plan document: what shardc emits, and what TorchRec, reviewers and later runs of shardc read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from shardc.diagnostics import Diagnostic, DiagnosticError, Location
from shardc.files import is_within, read_bytes, read_text, write_atomic
from shardc.vocabulary import CONFLICT, MAX_TABLES, Precision, ShardingType

if TYPE_CHECKING:
    from shardc.json_text import JsonText

# Bump it only when a reader of the old format would misread the new one. Readers ignore members that they do not know,
# so adding a member is no reason; they reject a document whose format is greater than theirs.
FORMAT: Final = 1

_WIDTH = 120
_one_line = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False).encode
_SIGNIFICANT_DIGITS = 6
_MAX_ERRORS = 10
_LIMITS = {
    "greater_than_equal": "ge",
    "greater_than": "gt",
    "less_than_equal": "le",
    "less_than": "lt",
    "too_short": "min_length",
    "too_long": "max_length",
}
_BOUNDS = {
    "greater_than_equal": "at least",
    "greater_than": "more than",
    "less_than_equal": "at most",
    "less_than": "less than",
    "too_short": "a length of at least",
    "too_long": "a length of at most",
}
_EXPECTED = {
    "json": "JSON of valid Unicode",
    "model": "an object",
    "dict": "an object",
    "list": "an array",
    "tuple": "an array",
    "string_pattern": "rank:R/cuda:L or rank:R/cpu",
    "string": "text",
    "int": "an integer",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
}
"""What a member has to be, by how the type of pydantic's error begins."""

PROFILE_CHANGED = "the hardware profile has changed since the plan was compiled"

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Positive = Annotated[int, Field(ge=1, le=2**63 - 1)]
Milliseconds = Annotated[float, Field(ge=0)]
# Not tuple[Count, Count]: its schema is an array of items by position, which editors of draft-07 do not check.
Extent = Annotated[tuple[Count, ...], Field(min_length=2, max_length=2)]
Shape = Annotated[tuple[Positive, ...], Field(min_length=2, max_length=2)]


DataType = Literal["fp32", "fp16", "bf16", "int64", "int32", "int8", "uint8", "int4", "int2", "nfp8"]
"""TorchRec's names of dtypes, in lower case."""


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):  # true would be 1
        raise PydanticCustomError("literal_error", "expected {expected}", {"expected": str(FORMAT)})
    return value


class _Member(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


def _without_empty(members: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in members.items() if key not in names or value}


def _without_null(members: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in members.items() if value is not None}


class PlanModel(_Member):
    """The model that the plan is for."""

    name: str = Field(description="Name of the model.")
    module: str = Field(description="Path of the embedding collection in the PyTorch model.")
    global_batch: Positive = Field(description="Samples of one step over all devices.")
    optimizer: Literal["sgd", "rowwise_adagrad", "adagrad", "adam"] = Field(description="Optimizer of the tables.")
    weights: Precision = Field(description="Type of the weights.")
    outputs: Precision = Field(description="Type of the pooled outputs.")


class PlanCluster(_Member):
    """The devices that the plan is for."""

    device: str = Field(description="Name of the hardware profile; where hosts differ, that of the first host.")
    hosts: Positive = Field(description="Number of hosts.")
    devices_per_host: Positive = Field(description="Devices of each host; ranks are numbered host by host.")
    host_devices: tuple[str, ...] = Field(
        (), fail_fast=True, description="Name of the hardware profile of each host; absent where all are alike."
    )

    @model_serializer(mode="wrap")
    def _without_host_devices(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_empty(handler(self), "host_devices")

    @property
    def devices(self) -> int:
        """Number of devices (ranks)."""
        return self.hosts * self.devices_per_host


class Digests(_Member):
    """What the plan was compiled from."""

    spec: str = Field(description="Digest of the spec.")
    profile: str | None = Field(description="Digest of the hardware profile; null for a cost model without one.")
    measurements: str | None = Field(None, description="Digest of the local measurements that corrected the profile.")
    cost: Literal["profile", "torchrec", "own"] = Field(
        "profile", description="Whose costs: the profile's, TorchRec's estimates, or those of an own cost model."
    )
    policy: str | None = Field(
        default=None, description="Digest of the weights of the RL policy that took part; absent without one."
    )

    @model_serializer(mode="wrap")
    def _without_policy(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_empty(handler(self), "policy")

    @property
    def of_costs(self) -> tuple[str | None, ...]:
        """What all stated figures rest on: everything but the policy, which only says where tables go."""
        return self.spec, self.profile, self.measurements, self.cost

    def changes(self, today: Digests) -> Iterator[str]:
        """Yield what has changed since a plan was compiled from these, in words."""
        if self.spec != today.spec:
            yield "the spec has changed since its plan was compiled"
        if self.cost != today.cost:
            yield f"the plan states its times by other costs ({self.cost}, now {today.cost})"
        elif self.profile != today.profile:
            yield PROFILE_CHANGED
        if self.measurements != today.measurements:
            yield "the local measurements are not those that the plan was compiled with"


class Tool(_Member):
    """What compiled the plan."""

    name: Literal["shardc"] = Field("shardc", description="Always shardc.")
    version: str = Field(description="Version of shardc.")
    seed: int = Field(description="Seed of the search.")


class PlanShard(_Member):
    """One piece of a table on one device."""

    shard_offsets: Extent = Field(description="First row and first column of the piece.")
    shard_sizes: Extent = Field(description="Rows and columns of the piece.")
    placement: str = Field(
        pattern=r"^rank:(0|[1-9][0-9]{0,8})/(cpu|cuda:(0|[1-9][0-9]{0,8}))$",
        description="The device, as rank:R/cuda:L (L is the rank within its host) or rank:R/cpu.",
    )

    @property
    def rank(self) -> int:
        """Rank of the device that holds the piece."""
        return int(self.placement.removeprefix("rank:").partition("/")[0])


class MultiPassPrefetch(_Member):
    """How a cache is filled in several passes."""

    num_passes: Positive = Field(description="Passes.")
    min_splitable_pass_size: Count = Field(description="Rows below which a pass is not split.")


class CacheParams(_Member):
    """How the caching kernel keeps a table in host memory and a part of it on the device; null: TorchRec's defaults."""

    load_factor: float | None = Field(None, gt=0, le=1, description="Share of the rows that the cache holds.")
    algorithm: Literal["lru", "lfu"] | None = Field(None, description="Which rows leave the cache first.")
    reserved_memory: float | None = Field(None, ge=0, description="Device memory kept free of the cache, in GiB.")
    precision: DataType | None = Field(None, description="Type of the cached weights.")
    prefetch_pipeline: bool | None = Field(None, description="Whether rows are fetched ahead of their step.")
    multipass_prefetch: MultiPassPrefetch | None = Field(None, description="Whether that is done in several passes.")

    @model_serializer(mode="wrap")
    def _without_null(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_null(handler(self))


# fail_fast: of a long array the first wrong element is told, not millions.
class TablePlan(_Member):
    """How one table is sharded, in TorchRec's terms."""

    sharding_type: ShardingType = Field(description="Way to shard the table.")
    compute_kernel: Literal["dense", "fused", "fused_uvm", "fused_uvm_caching"] = Field(
        description="TorchRec's kernel: dense for data_parallel, fused_uvm_caching for a table in host memory."
    )
    ranks: tuple[Count, ...] = Field(
        fail_fast=True, description="Rank of each shard, in their order; every rank for data_parallel."
    )
    shards: tuple[PlanShard, ...] = Field(
        (), fail_fast=True, description="The pieces of the table; absent for data_parallel."
    )
    shape: Shape | None = Field(
        None, description="Rows and columns of a data_parallel table; absent for others, whose shards say it."
    )
    cache_params: CacheParams | None = Field(None, description="Cache of the caching kernel; absent for others.")
    enforce_hbm: bool | None = Field(None, description="Whether caching keeps optimizer state on the device.")
    stochastic_rounding: bool | None = Field(None, description="Whether updates of fp16 weights are rounded at random.")
    bounds_check_mode: Literal["fatal", "warning", "ignore", "none", "v2_ignore", "v2_warning", "v2_fatal"] | None = (
        Field(None, description="What becomes of an index beyond the table.")
    )
    output_dtype: DataType | None = Field(None, description="Type of the pooled outputs, where it is not the model's.")

    @model_serializer(mode="wrap")
    def _without_empty_members(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_null(_without_empty(handler(self), "shards"))

    @property
    def cached(self) -> float:
        """Share of the rows that a cache has room for; 1.0 for a table that is on the devices."""
        return (self.cache_params and self.cache_params.load_factor) or 1.0


class DeviceScore(_Member):
    """What one device does in a step, and what it holds."""

    rank: Count = Field(description="Rank of the device.")
    forward_ms: Milliseconds | None = Field(
        description="Time of the forward lookups, with their communication in TorchRec's estimates; null where unknown."
    )
    backward_ms: Milliseconds | None = Field(description="Time of the backward pass and update, in the same way.")
    memory_bytes: Count = Field(description="Bytes that the shards of this device take.")
    memory_limit_bytes: Count = Field(description="Bytes that they may take.")
    host_memory_bytes: Count | None = Field(
        None, description="Bytes of host memory that they take; absent where tables may take none."
    )
    host_memory_limit_bytes: Count | None = Field(
        None, description="Bytes of it that they may take: the device's part of its host's."
    )

    @model_serializer(mode="wrap")
    def _without_host_memory(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        members = handler(self)
        return {key: value for key, value in members.items() if value is not None or not key.startswith("host_memory")}


class Score(_Member):
    """What the cost model expects of the plan."""

    step_time_ms: Milliseconds = Field(description="Time of one training step.")
    step_time_p90_ms: Milliseconds | None = Field(
        default=None, description="The same, if every device took the time that nine of ten stay below."
    )
    phases: dict[str, Milliseconds] = Field(description="Time of each phase of a step, by name.")
    balance: float = Field(description="Degree of balance: least over greatest compute time of a device.", ge=0, le=1)
    devices: tuple[DeviceScore, ...] = Field(fail_fast=True, description="The devices, by rank.")


class Bound(_Member):
    """What no plan can be better than, under the same cost model."""

    step_time_ms: Milliseconds = Field(description="Lower bound on the time of one training step.")
    gap: float = Field(description="How far the plan is above the bound, as a share of the bound.", ge=0)


class Chosen(_Member):
    """Which strategy proposed the plan."""

    strategy: str = Field(description="Name of the strategy.")
    reason: str = Field(description="Why it was chosen.")


class Candidate(_Member):
    """One strategy and what became of its proposal."""

    strategy: str = Field(description="Name of the strategy.")
    step_time_ms: Milliseconds | None = Field(description="Time of one training step; null when nothing was proposed.")
    feasible: bool = Field(description="Whether the proposal fits the memory and keeps the constraints.")
    reason: str = Field(description="Why it was chosen or not.")


class PlanMigration(_Member):
    """What has to move for a plan to take the place of its base."""

    base: str = Field(description="Digest of the plan that it was compiled near to.")
    moved_bytes: Count = Field(description="Bytes that devices get from other devices: weights and optimizer state.")
    model_bytes: Count = Field(description="Bytes of all tables, each once.")
    held_bytes: Count | None = Field(
        None,
        description="Bytes of all shards, each replica too: what a moved share is of; absent in old plans.",
    )

    @model_serializer(mode="wrap")
    def _without_held_bytes(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_null(handler(self))


class Plan(_Member):
    """A sharding plan compiled by shardc."""

    model_config = ConfigDict(title="shardc plan")

    format: Annotated[Literal[1], BeforeValidator(_no_boolean)] = Field(description="Version of this format.")
    model: PlanModel
    cluster: PlanCluster
    digests: Digests
    tool: Tool
    plan: dict[str, Annotated[dict[str, TablePlan], Field(min_length=1)]] = Field(
        min_length=1, description="The sharding of each table: path of the module, then name of the table."
    )
    score: Score
    bound: Bound | None = Field(description="Lower bound; null for a cost model that has no certificate.")
    chosen: Chosen
    candidates: tuple[Candidate, ...] = Field(fail_fast=True, description="Every strategy that was tried.")
    migration: PlanMigration | None = Field(None, description="Bytes that move; absent for a plan without a base.")
    digest: str | None = Field(
        default=None,
        description="Digest of all other members, whatever their layout: what is edited by hand does not match it.",
    )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as `shardc compile` does, whole or not at all.

        Raises:
            DiagnosticError: SH004, exit code 2; the file is then as it was.
        """
        write_atomic(path, plan_bytes(self))

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_empty(handler(self), "migration", "digest")


def default_plan_path(spec: str | os.PathLike[str]) -> str:
    """Where the plan of a spec is kept: model.plan.json beside model.toml."""
    return os.path.splitext(os.fspath(spec))[0] + ".plan.json"


def default_spec_path(plan: str | os.PathLike[str]) -> str | None:
    """Which spec a plan is kept beside: model.toml for model.plan.json; None for a plan of another name."""
    name = os.fspath(plan)
    stem = name.removesuffix(".plan.json")
    return f"{stem}.toml" if stem != name else None


def stray_link(plan: str, spec: str | os.PathLike[str]) -> Diagnostic | None:
    """SH002 where the plan beside a spec is a link to what is none, or out of the spec's folder.

    Whoever wrote the spec may have made it: what it leads to is neither quoted nor replaced.
    """
    if not os.path.islink(plan):
        return None
    if not is_within(plan, os.path.dirname(os.path.realpath(spec))):
        return Diagnostic("SH002", f"the plan {plan} is a link that leads out of the spec's folder")
    if os.path.exists(plan) and not may_be_plan(read_bytes(plan, "plan")):
        return Diagnostic("SH002", f"the plan {plan} is a link to a file that is no plan")
    return None


def plan_bytes(plan: Plan) -> bytes:
    """Return the canonical document: the same bytes for the same plan everywhere, laid out to be read in a diff.

    Keys are sorted and floats have six significant digits. What fits on a line of 120 columns stays on one; anything
    longer has one member a line, so that a shard that moves changes one line.
    """
    document = _rounded(plan.model_dump(mode="json"))
    return (_layout(document | {"digest": _digest(_plain(document))}, "", "") + "\n").encode()


def canonical_json(value: Any) -> str:
    """Return a JSON document with sorted keys and rounded floats, in the layout of a plan."""
    return _layout(_rounded(value), "", "") + "\n"


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan.

    Raises:
        DiagnosticError: SH001 to SH003 when the file cannot be read, SH302 when it is not a plan (at most ten
            findings, each with the member at fault), SH303 when its format is newer than this version of shardc reads.
    """
    return parse_plan(os.fspath(path), read_text(path, "plan"))


def parse_plan(file: str, text: str) -> Plan:
    """Return the plan that a text is.

    Args:
        file: what to call it in messages.
        text: the document.

    Raises:
        DiagnosticError: SH302 and SH303, as of `read_plan`.
    """
    return _plan_of(file, text, _parse(file, text))


def parse_stated(file: str, text: str) -> tuple[Plan, bool | None]:
    """Return the plan that a text is, and whether it is as shardc wrote it; see `parse_plan` and `is_as_written`."""
    document = _parse(file, text)
    return _plan_of(file, text, document), _is_as_written(document)


def _plan_of(file: str, text: str, document: Any) -> Plan:
    if not isinstance(document, dict):
        raise _not_a_plan(file, "a plan is a JSON object")
    version = document.get("format")
    if isinstance(version, int) and version > FORMAT:
        message = f"{file} has plan format {version}; this version of shardc reads formats up to {FORMAT}"
        raise DiagnosticError(Diagnostic("SH303", message, help="upgrade shardc"))
    modules = document.get("plan")
    tables = [module for module in modules.values() if isinstance(module, dict)] if isinstance(modules, dict) else []
    if (count := sum(map(len, tables))) > MAX_TABLES:
        raise _not_a_plan(file, f"expected at most {MAX_TABLES} tables, found {count}")
    try:
        return Plan.model_validate_json(text, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        at = _positions(file, text).locate(details[0]["loc"])
        raise _not_a_plan(file, *(_member(detail["loc"], _complaint(detail)) for detail in details), at=at) from None


def may_be_plan(content: bytes) -> bool:
    """Say whether a file is a plan, be it truncated or one that could not be merged."""
    return content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"<<<<<<<")) and b'"digests"' in content


def is_as_written(text: str) -> bool | None:
    """Return whether a plan's document is, but for its layout, as shardc wrote it; None if it has no digest.

    Args:
        text: a document that `parse_plan` takes.
    """
    return _is_as_written(json.loads(text, parse_float=_number))


def _is_as_written(document: dict[str, Any]) -> bool | None:
    return None if document.get("digest") is None else document["digest"] == _digest(document)


def _digest(document: dict[str, Any]) -> str:
    """Digest of all members but "digest": of what they say, not of how text is written; numbers are `_plain`."""
    content = {name: value for name, value in document.items() if name != "digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _number(text: str) -> int | float:
    """A number with a point or exponent, as `_plain` has it."""
    number = float(text)
    return int(number) if number.is_integer() else number


def _plain(value: Any) -> Any:
    """Write whole numbers as integers: other tools write 1.0 as 1."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def plan_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft-07) of the plan document."""
    schema = Plan.model_json_schema(ref_template="#/definitions/{model}")
    schema["definitions"] = schema.pop("$defs")
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def _layout(value: Any, indent: str, key: str) -> str:
    """Render a value that stands behind `indent` and `key`, on one line if that and a comma fit the width."""
    nested = isinstance(value, dict | list)
    if not nested or len(value) < _WIDTH:  # what has more members is longer in any case
        line = _one_line(value)
        if not value or not nested or len(indent) + len(key) + len(line) < _WIDTH:
            return key + line
    inner = indent + "  "
    if isinstance(value, dict):
        names = {name: _one_line(name) + ": " for name in sorted(value)}
        members = [_layout(value[name], inner, text) for name, text in names.items()]
        opening, closing = "{", "}"
    else:
        members = [_layout(item, inner, "") for item in value]
        if not any(isinstance(item, dict | list) for item in value):
            members = _filled(members, _WIDTH - len(inner))
        opening, closing = "[", "]"
    return f"{key}{opening}\n{inner}" + f",\n{inner}".join(members) + f"\n{indent}{closing}"


def _filled(members: list[str], width: int) -> list[str]:
    """Put as many members on a line as fit: the ranks of a large cluster are no good one a line."""
    lines = members[:1]
    for member in members[1:]:
        joined = f"{lines[-1]}, {member}"
        if len(joined) < width:
            lines[-1] = joined
        else:
            lines.append(member)
    return lines


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}") + 0.0  # no minus zero
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _parse(file: str, text: str) -> Any:
    """Parse JSON, without what JSON leaves open (duplicate keys) or does not have (NaN)."""
    if not text.strip():
        raise _not_a_plan(file, "it is empty")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            twice, at = _positions(file, text).duplicate()
            fix = "leave one of the two, and compile the spec again"
            raise _not_a_plan(file, f'the key "{twice}" occurs twice in one object', at=at, help=fix)
        return members

    def constant(name: str) -> NoReturn:
        at = _positions(file, text).first(re.escape(name))
        raise _not_a_plan(file, f"{name} is not JSON", at=at, help="compile the spec again")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_float=_number)
    except json.JSONDecodeError as error:
        lines = text.split("\n")
        if found := CONFLICT.search(text):
            line = text.count("\n", 0, found.start())
            mark = lines[line].rstrip("\r")
            fix = "take either side, and compile the spec again"
            at = Location(file, line + 1, 1, len(mark), mark)
            raise DiagnosticError(Diagnostic("SH302", "the plan has conflicts of a merge", at, fix)) from None
        location = Location(file, error.lineno, error.colno, 1, lines[error.lineno - 1].rstrip("\r"))
        raise DiagnosticError(Diagnostic("SH302", f"not JSON: {error.msg}", location)) from None
    except RecursionError:
        raise _not_a_plan(file, "nested too deep") from None
    except ValueError:
        long = _positions(file, text).first(rf"-?\d{{{sys.get_int_max_str_digits() + 1},}}")
        raise _not_a_plan(file, "a number in it has more digits than are read", at=long) from None


def _positions(file: str, text: str) -> JsonText:
    from shardc.json_text import JsonText  # hardly any plan has anything wrong

    return JsonText(file, text)


def _not_a_plan(file: str, *reasons: str, at: Location | None = None, help: str | None = None) -> DiagnosticError:
    first, *others = dict.fromkeys(reasons)
    notes = others[:_MAX_ERRORS] + [f"and {len(others) - _MAX_ERRORS} more"] * (len(others) > _MAX_ERRORS)
    return DiagnosticError(Diagnostic("SH302", f"{file} is not a plan: {first}", at, help, notes=tuple(notes)))


def _member(path: Iterable[str | int], complaint: str) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return f"{where}: {complaint}" if where else complaint


def _complaint(detail: ErrorDetails) -> str:
    """Say what pydantic found wrong with a member."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "missing":
        return "missing"
    if kind == "literal_error":
        return f"expected {context['expected']}"
    if kind in _BOUNDS:
        return f"expected {_BOUNDS[kind]} {context[_LIMITS[kind]]}"
    return next((f"expected {words}" for start, words in _EXPECTED.items() if kind.startswith(start)), "malformed")

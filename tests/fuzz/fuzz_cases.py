"""What shardc is fed when it is fuzzed: hypothesis strategies for specs, plans, profiles, data files and arguments.

A case is a command and the files of the folder that it runs in. Broken inputs are made of sound ones, by changing what
they say (values, keys, types) or how it is written (slices, bytes, truncation): what is nearly right gets furthest.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

from hypothesis import strategies as st

import shardc
from shardc.hardware import PROFILES
from shardc.plan import plan_bytes

INFEASIBLE = frozenset({"SH201", "SH202", "SH203"})


@dataclass(frozen=True)
class Case:
    """A command to run.

    Attributes:
        kind: what was fuzzed.
        arguments: of the command line.
        files: content by path, relative to the folder that the command runs in.
        refused_with: codes with which it may be refused; None for any.
        stdin: what can be read there.
    """

    kind: str
    arguments: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    refused_with: frozenset[str] | None = None
    stdin: bytes = b""


class Written(str):
    """A TOML value as it is written, for what Python has no value for."""


def _split(text: str) -> list[str]:
    return text.split()


# --- Values -----------------------------------------------------------------------------------------------------------

_INTEGERS = [0, -1, 1, 2, 3, 5, 17, 4096, 65537, 2**31 - 1, 2**31, 2**32, 2**53, 10**12, 10**13, 2**63 - 1, -(2**63)]
_FLOATS = [0.0, -0.0, 0.5, 1.0, 1 + 1e-9, 17.5, 5e-324, 1e-300, 1e16, 1e308, -1.5, math.inf, -math.inf, math.nan]
_WORDS = ["", " ", "1 %", "\n", "\u202e", "\x00", "\x1b[31m", "x" * 201]
_WORDS += _split("""a b é 表 a.b a/b ../a / - * [ { uniform zipf=1 0% 15% 99.999999999% 100% 999.9% -1% 1e3% 0B 1B 72GiB
    999999999999PiB 1000000000000B 0.000000001B 450GB/s 0B/s 1KB/s GiB 1gib h100-80gb cpu-epyc l4-24gb row_wise
    table_wise grid_shard fused fused_uvm_caching adam fp16 rank:0/cuda:0 rank:1/cuda:1 rank:0/cpu rank:-1/cpu
    model.toml tables.csv . error off""")
_NESTED: list[Any] = [[], {}, [[]], [1], ["a"], [1, 1], ["a", 1], {"zipf": 1.0}, {"bins": [1.0] + [0.0] * 16}]
_NESTED += [{"indices": "lookups.pt"}, {"a": {"b": {}}}, [{}], [{"name": "t0"}], {"bins": [0.0] * 17}, True, False]
_UNWRITTEN = [Written(text) for text in ("1979-05-27", "07:32:00", "0x10", "1e400", "-nan", "9" * 40, "1_0", "'''a'''")]
JUNK = st.one_of(
    st.sampled_from(_INTEGERS),
    st.sampled_from(_FLOATS),
    st.sampled_from(_WORDS),
    st.sampled_from(_NESTED).map(deepcopy),
)
TOML_JUNK = st.one_of(JUNK, st.sampled_from(_UNWRITTEN))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a document but itself."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, each in inner:
        found += [(*path, key), *_paths(each, (*path, key))]
    return found


@st.composite
def changed(draw: st.DrawFn, document: dict[str, Any], junk: st.SearchStrategy[Any] = JUNK) -> dict[str, Any]:
    """A document with one to three values or keys of it changed."""
    document = deepcopy(document)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        paths = _paths(document)
        if not paths:
            break
        *way, last = draw(st.sampled_from(paths))
        inner: Any = document
        for key in way:
            inner = inner[key]
        match draw(st.sampled_from(["junk", "junk", "remove", "near", "add", "rename", "other"])):
            case "remove":
                del inner[last]
            case "near" if isinstance(inner[last], int | float):
                was = inner[last]
                inner[last] = draw(st.sampled_from([was + 1, was - 1, -was, was * 2.0]))
            case "near" if isinstance(inner[last], list) and inner[last]:
                inner[last] = draw(
                    st.sampled_from([inner[last][:-1], inner[last] + inner[last][:1], inner[last][::-1]])
                )
            case "near" if isinstance(inner[last], str):
                inner[last] += draw(st.sampled_from(["x", " ", "s", "\n", ".", "0", "_"]))
            case "add" if isinstance(inner, dict):
                inner[draw(st.sampled_from(_WORDS))] = draw(junk)
            case "add" if isinstance(inner, list):
                inner.append(draw(st.one_of(st.just(deepcopy(inner[last])), junk)))
            case "rename" if isinstance(inner, dict):
                inner[draw(st.sampled_from([f"{last}s", f"{last}"[1:], f"{last}".upper(), *_WORDS[:20]]))] = inner.pop(
                    last
                )
            case "other":
                *there, name = draw(st.sampled_from(paths))
                found: Any = document
                for key in (*there, name):
                    found = found[key] if isinstance(found, dict | list) and _has(found, key) else 0
                inner[last] = deepcopy(found)
            case _:
                inner[last] = draw(junk)
    return document


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _has(value: Any, key: Any) -> bool:
    return key in value if isinstance(value, dict) else isinstance(key, int) and key < len(value)


@st.composite
def damaged(draw: st.DrawFn, data: bytes, tokens: Sequence[str | bytes]) -> bytes:
    """Bytes with one to three places changed, cut out or doubled."""
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([0, 1, 2, 7, 40, 400]))
        match draw(st.sampled_from(["token", "token", "cut", "double", "byte", "end", "line", "swap"])):
            case "token":
                token = draw(st.sampled_from(tokens))
                token = token.encode(errors="surrogatepass") if isinstance(token, str) else token
                data = data[:at] + token + data[at + length :]
            case "cut":
                data = data[:at] + data[at + length :]
            case "double":
                data = data[: at + length] + data[at : at + length] + data[at + length :]
            case "byte":
                data = data[:at] + draw(st.binary(min_size=1, max_size=3)) + data[at + 1 :]
            case "end":
                data = data[:at]
            case "line":
                lines = data.split(b"\n")
                which = at % len(lines)
                data = b"\n".join([*lines[:which], *lines[which + 1 :], lines[which]])
            case "swap":
                data = data[at:] + data[:at]
    return data


# --- Specs ------------------------------------------------------------------------------------------------------------

_TYPES = ["table_wise", "column_wise", "table_column_wise", "row_wise", "table_row_wise", "grid_shard", "data_parallel"]
_TOKENS = _split("""[ ] [[ ]] { } = . " ' \"\"\" ''' # , \\ \\u0000 \\ud800 é inf -nan 1e999 0x _ 1979-05-27T07:32:00Z
    true % ; [table] [[table]] [cluster] [tables] name= rows=-1 access=" format=2 format=1 x={a={b=[]}}""")
_TOKENS += [
    "\n",
    "\r",
    "\t",
    "\0",
    "\ud800",
    "\ufeff",
    "\u2028",
    "\x1b[2J",
    "{" * 200,
    "[" * 2000,
    "9" * 5000,
    "a." * 500,
]


def toml_text(document: Mapping[str, Any]) -> str:
    """Write nested dicts as TOML: sections for what is in a spec's, inline tables below them."""
    lines: list[str] = []
    for key, value in document.items():
        if not isinstance(value, dict) and not _is_tables(value):
            lines.append(f"{_toml_key(key)} = {_toml(value)}")
    for key, value in document.items():
        sections = [(f"[{_toml_key(key)}]", value)] if isinstance(value, dict) else []
        if _is_tables(value):
            sections = [(f"[[{_toml_key(key)}]]", each) for each in value]
        for header, members in sections:
            lines += [header, *(f"{_toml_key(name)} = {_toml(each)}" for name, each in members.items())]
    return "\n".join(lines) + "\n"


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _toml_key(key: object) -> str:
    text = str(key)
    return text if text.isascii() and text.replace("_", "a").replace("-", "a").isalnum() else _toml(text)


def _toml(value: Any) -> str:
    match value:
        case Written():
            return str(value)
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False)
        case int() | float():
            return repr(value)
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
    return "{" + ", ".join(f"{_toml_key(key)} = {_toml(each)}" for key, each in value.items()) + "}"


Pick = Callable[[Sequence[Any]], Any]
"""Chooses one of several."""


def _some(pick: Pick, options: Sequence[Any], most: int) -> list[Any]:
    """One to `most` of the options, each once."""
    return list(dict.fromkeys(pick(options) for _ in range(pick(range(1, most + 1)))))


def _tables(pick: Pick, devices: int, cached: bool) -> list[dict[str, Any]]:
    tables = []
    for number in range(pick([1, 2, 3, 4, 6])):
        table: dict[str, Any] = {
            "name": f"t{number}",
            "rows": pick([1, 2, 3, 7, 100, 1000, 65_536, 1_000_003, 40_000_000]),
            "dim": pick([4, 8, 12, 64, 128, 516]),
            "pooling": pick([1, 1, 0.01, 2.5, 27, 1000]),
        }
        match pick(["", "", "access", "features"]):
            case "access":
                table["access"] = pick(
                    ["uniform", {"zipf": 1.05}, {"zipf": 5}, {"bins": [0.5, 0.25, 0.25] + [0.0] * 14}]
                )
            case "features":
                table["features"] = [f"f{number}_{each}" for each in range(pick([1, 2, 4]))]
        match pick(["", "", "type", "pin", "group", "apart"]):
            case "type":
                table["sharding"] = _some(pick, _TYPES, 4)
            case "pin":
                table["pin"] = _some(pick, range(devices), 3)
            case "group":
                table["group"] = pick(["g", "h"])
            case "apart" if number < devices:
                table["apart"] = "s"
        if cached and pick([False, True]):
            table |= {"kernels": ["fused_uvm_caching", "fused"], "cache_ratio": pick([0.01, 0.5, 0.99])}
        tables.append(table)
    return tables


def spec_document(pick: Pick) -> dict[str, Any]:
    """A valid spec, as nested dicts. What it describes need not fit on its devices."""
    hosts, local = pick([(1, 1), (1, 2), (1, 4), (2, 2), (2, 1), (3, 2), (2, 4)])
    device = pick(["h100-80gb", "a100-40gb", "v100-16gb", "l4-24gb", "cpu-epyc"])
    on_cpu = device == "cpu-epyc"
    cluster: dict[str, Any] = {"device": device, "hosts": hosts, "devices_per_host": local}
    cached = not on_cpu and pick([False, False, True])
    if cached:
        cluster["host_memory"] = pick(["1MiB", "64GiB", "4TiB"])
    if on_cpu:
        cluster |= pick([{}, {"memory": "1GiB"}, {"intra_host_bandwidth": "1GB/s"}])
    else:
        cluster |= pick([{}, {}, {"memory": "1GiB", "reserve": "0%"}, {"memory": "40MB"}, {"reserve": "10GiB"}])
    if hosts > 1 and pick([False, True]):
        cluster["host"] = [{"hosts": [hosts - 1], "memory": "14GiB", "inter_host_bandwidth": "7GB/s"}]
    if pick([False, False, True]):
        cluster["rank"] = [{"ranks": [0], "memory": "13GiB"}]
    document: dict[str, Any] = {
        "format": 1,
        "model": {
            "name": pick(["m", "dlrm-表", "a b"]),
            "module": pick(["ebc", "", "a.b.0"]),
            "global_batch": pick([1, 7, 1024, 65536, 2**31]),
            "optimizer": pick(["sgd", "rowwise_adagrad", "adagrad"] + ["adam"] * (not on_cpu)),
            "weights": pick(["fp32", "fp16"] + ["bf16"] * (not on_cpu)),
            "outputs": pick(["fp32", "fp16", "bf16"]),
        },
        "cluster": cluster,
        "compile": {"effort": "fast", "seed": pick([0, 1, 2**32 - 1])},
        "table": _tables(pick, hosts * local, cached),
    }
    document["compile"] |= pick([{}, {}, {"cost": "torchrec"}] + [{"quantile": 0.9}] * on_cpu)
    if pick([False, True]):
        document["budget"] = pick([{"gap": "10%"}, {"balance": "50%", "headroom": "10%"}])
    if pick([False, True]):
        document["defaults"] = {"dim": 64, "access": {"zipf": 0.5}}
    return document


def with_table_file(document: dict[str, Any]) -> dict[str, bytes]:
    """The files of a spec whose tables are rows of a table file."""
    columns = list(dict.fromkeys(key for table in document["table"] for key in table))
    rows = [columns] + [[_cell(key, table.get(key, "")) for key in columns] for table in document["table"]]
    text = "\n".join(",".join(f'"{cell}"' if "," in cell else cell for cell in row) for row in rows) + "\n"
    rest = {key: value for key, value in document.items() if key != "table"} | {"tables": {"file": "tables.csv"}}
    return {"model.toml": toml_text(rest).encode(), "tables.csv": text.encode()}


def _cell(key: str, value: Any) -> str:
    if isinstance(value, dict):
        ((form, value),) = value.items()
        return f"{form}={_cell(key, value)}"
    return ";".join(map(str, value)) if isinstance(value, list) else str(value)


def _files(document: dict[str, Any], in_file: bool) -> dict[str, bytes]:
    return with_table_file(document) if in_file else {"model.toml": toml_text(document).encode()}


_IN_FILE = st.sampled_from([False, False, True])
_COMPILE = ("compile", "model.toml", "-q")
_OF_SPECS = [
    ("compile", "model.toml"),
    ("compile", "model.toml", "-q", "-o", "-"),
    ("compile", "model.toml", "--set", "cluster.hosts=2"),
    ("check", "model.toml", "--update"),
    ("check", ".", "--format", "json"),
    ("explain", "model.toml", "--format", "json"),
    ("explain", "model.toml", "t0"),
    ("sweep", "model.toml", "--devices", "1,2", "-q"),
    ("check", "model.toml", "--frozen", "--format", "sarif"),
]
# Contradictions of constraints, and what some devices lack, are no matter of form.
_REFUSED = INFEASIBLE | {"SH106", "SH113", "SH114", "SH301", "SH331", "SH403"}


@st.composite
def valid_specs(draw: st.DrawFn) -> Case:
    """A valid spec: it compiles, or does not fit."""
    document, in_file = spec_document(lambda options: draw(st.sampled_from(options))), draw(_IN_FILE)
    arguments = draw(st.sampled_from([_COMPILE] * 12 + _OF_SPECS))
    codes = None if arguments[0] in ("check", "explain", "sweep") or "--set" in arguments else _REFUSED
    return Case("valid spec", arguments, _files(document, in_file), codes)


@st.composite
def broken_specs(draw: st.DrawFn) -> Case:
    """What was a valid spec."""
    # What is sound of it need not shrink: drawn in one go, it costs a tenth of the time.
    document, in_file = spec_document(Random(draw(st.integers(0, 2**16))).choice), draw(_IN_FILE)
    how = draw(st.sampled_from(["values", "values", "text"]))
    if how == "values" and in_file:
        files = with_table_file(document)
        rows = [line.split(",") for line in files["tables.csv"].decode().splitlines()]
        cells = next(iter(draw(changed({"rows": rows})).values()), [])
        lines = [",".join(map(str, row)) if isinstance(row, list) else str(row) for row in _listed(cells)]
        files["tables.csv"] = "\n".join(lines).encode(errors="replace")
    elif how == "values":
        files = {"model.toml": toml_text(draw(changed(document, TOML_JUNK))).encode(errors="surrogatepass")}
    else:
        files = _files(document, in_file)
        name = draw(st.sampled_from(sorted(files)))
        files[name] = draw(damaged(files[name], _TOKENS))
    arguments = draw(st.sampled_from([("validate", "model.toml")] * 12 + [_COMPILE] * 3 + _OF_SPECS))
    return Case("broken spec", arguments, files)


# --- Plans ------------------------------------------------------------------------------------------------------------


def _base(device: str, tables: list[dict[str, Any]], model: dict[str, Any], **cluster: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 4096, **model},
        "cluster": {"device": device, "hosts": 2, "devices_per_host": 2, **cluster},
        "compile": {"effort": "fast"},
        "defaults": {"dim": 16, "pooling": 2},
        "table": tables,
    }


@cache
def sound_plans() -> tuple[tuple[bytes, bytes], ...]:
    """Specs and their plans; between them, they have every sharding type and kernel."""
    of_types = [{"name": kind, "rows": 1000, "sharding": [kind]} for kind in _TYPES]
    cached = [{"name": f"c{n}", "rows": 5000, "kernels": ["fused_uvm_caching"]} for n in range(2)]
    mixed = [{"hosts": [1], "device": "l4-24gb"}]
    documents = [
        _base("h100-80gb", of_types, {}),
        _base("l4-24gb", [*cached, {"name": "g", "rows": 9, "pin": [3]}], {"weights": "fp16"}, host_memory="1GiB"),
        _base("cpu-epyc", [{"name": f"t{n}", "rows": 10 ** (n + 1)} for n in range(4)], {"module": ""}),
        _base("h100-80gb", [{"name": "a", "rows": 70}, {"name": "b", "rows": 70}], {"optimizer": "adam"}, host=mixed),
    ]
    return tuple((toml_text(each).encode(), plan_bytes(shardc.compile(each))) for each in documents)


_OF_PLANS = [
    ("check", "model.toml", "--frozen"),
    ("check", "model.toml", "--frozen"),
    ("check", "model.toml"),
    ("check", "model.toml", "--update"),
    ("check", "model.toml", "--frozen", "--base", "old.plan.json"),
    ("diff", "old.plan.json", "model.plan.json"),
    ("diff", "model.plan.json", "old.plan.json", "--format", "markdown"),
    ("diff", "-", "old.plan.json", "--format", "json"),
    ("migrate", "old.plan.json", "model.plan.json", "--format", "csv"),
    ("migrate", "model.plan.json", "old.plan.json"),
    ("explain", "model.plan.json"),
    ("explain", "model.plan.json", "t1", "--format", "markdown"),
    ("export", "model.plan.json", "--to", "torchrec"),
    ("export", "model.plan.json", "--to", "hugectr"),
    ("export", "model.plan.json", "--to", "pytorch"),
    ("export", "model.plan.json", "--to", "csv"),
    ("report", "model.plan.json", "-q"),
    ("report", "old.plan.json", "--base", "model.plan.json", "-o", "-"),
    ("compile", "model.toml", "--base", "model.plan.json", "-q", "-o", "new.plan.json"),
    ("measure", "model.plan.json"),
]
_JSON_TOKENS = _split("""{ } [ ] , : " null true NaN -Infinity 1e999 -0.0 \\ \\ud800 "\\u0000" é 0.1 -1 "ranks":[]""")
_JSON_TOKENS += ["\n", "\0", "\ud800", "\ufeff", "9" * 5000, "[" * 3000, '{"a":' * 1500]


@st.composite
def plans(draw: st.DrawFn) -> Case:
    """A plan that was changed, and what reads plans."""
    spec, sound = draw(st.sampled_from(sound_plans()))
    if draw(st.sampled_from(["values", "values", "text"])) == "values":
        document = draw(changed(json.loads(sound)))
        data = json.dumps(document, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    else:
        data = draw(damaged(sound, _JSON_TOKENS))
    arguments = draw(st.sampled_from(_OF_PLANS))
    files = {"model.toml": spec, "model.plan.json": data, "old.plan.json": sound}
    return Case("plan", arguments, files, stdin=data)


# --- Profiles and data files ------------------------------------------------------------------------------------------


@cache
def _profile() -> tuple[dict[str, Any], bytes]:
    folder = PROFILES / "cpu-epyc"
    return json.loads((folder / "profile.json").read_bytes()), (folder / "weights.safetensors").read_bytes()


def _sealed(document: dict[str, Any], weights: bytes) -> dict[str, Any]:
    """The document of a profile that names its weights."""
    return document | {"weights_digest": "sha256:" + hashlib.sha256(weights).hexdigest()}


def _header(data: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(data[:8], "little") + 8
    return data[:size], data[size:]


def _retyped(weights: bytes, name: str, type: str) -> bytes:
    """Weights, an array of which has a type that numpy may lack."""
    header, rest = _header(weights)
    document = json.loads(header[8:])
    first, last = document[name]["data_offsets"]
    document[name] |= {"dtype": type, "shape": [(last - first) // {"F8_E4M3": 1, "C64": 8}.get(type, 2)]}
    text = json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text + rest


@st.composite
def profiles(draw: st.DrawFn) -> Case:
    """A spec whose device is a folder: a profile that was changed."""
    document, weights = _profile()
    what = draw(st.sampled_from(["values", "values", "text", "weights", "header", "tensors", "missing"]))
    spec = _base("device", [{"name": f"t{n}", "rows": 10 ** (n + 1)} for n in range(3)], {})
    spec["compile"] |= draw(st.sampled_from([{}, {"quantile": 0.95}]))
    files: dict[str, bytes] = {}
    if what == "values":
        text = json.dumps(draw(changed(document))).encode(errors="surrogatepass")
    elif what == "text":
        text = draw(damaged(json.dumps(document, indent=1).encode(), _JSON_TOKENS))
    elif what in ("weights", "header"):
        header, rest = _header(weights)
        if what == "header":
            weights = draw(damaged(header, _JSON_TOKENS)) + rest
        else:
            weights = draw(damaged(weights, (b"\xff" * 8, b"\0" * 8, b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f")))
        text = json.dumps(_sealed(document, weights)).encode()
    elif what == "tensors":
        import numpy as np
        from safetensors.numpy import load, save

        arrays = load(weights)
        name = draw(st.sampled_from(sorted(arrays)))
        value = draw(st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 0.0, 1e30, 1e-30]))
        how = draw(st.sampled_from(["fill", "one", "shape", "type", "remove", "foreign"]))
        match how:
            case "fill":
                arrays[name] = np.full_like(arrays[name], value)
            case "one":
                arrays[name] = arrays[name].copy()
                arrays[name].flat[0] = value
            case "shape":
                arrays[name] = np.ascontiguousarray(arrays[name][:-1])
            case "type":
                arrays[name] = arrays[name].astype(draw(st.sampled_from(["float16", "int32", "bool", "float64"])))
            case "remove":
                del arrays[name]
        weights = save(arrays)
        if how == "foreign":
            weights = _retyped(weights, name, draw(st.sampled_from(["BF16", "F8_E4M3", "C64", "U16", "F16"])))
        text = json.dumps(_sealed(document, weights)).encode()
    else:
        text = json.dumps(document).encode()
        files.pop(draw(st.sampled_from(["weights", "document"])), None)
    files |= {"device/profile.json": text, "device/weights.safetensors": weights}
    if what == "missing":
        del files[draw(st.sampled_from(sorted(files)))]
    if draw(st.sampled_from([False, False, True])):
        files["device/policy.safetensors"] = draw(damaged((PROFILES / "policy.safetensors").read_bytes(), _JSON_TOKENS))
    files["model.toml"] = toml_text(spec).encode()
    arguments = draw(st.sampled_from([_COMPILE] * 4 + [("check", "model.toml", "--update"), ("explain", "model.toml")]))
    return Case("profile", arguments, files)


@cache
def _campaign() -> dict[str, bytes]:
    """The files of a campaign: half of its sets in a journal, half in a Parquet file."""
    from shardc.measure.campaign import Measurement, to_entry
    from shardc.measure.design import CPU_RANGE, draw_workload
    from shardc.measure.parquet import parquet_bytes
    from shardc.measure.workload import Timing
    from shardc.profiling import _identity

    timing = Timing(9, 1.5, 2.5, 0.01, 0.01, 0.6, 1.2)
    entries = [to_entry(Measurement(number, draw_workload(0, number, CPU_RANGE), timing)) for number in range(6)]
    return {
        "campaign.json": json.dumps(_identity(0)).encode(),
        "measurements.jsonl": b"".join(json.dumps(entry).encode() + b"\n" for entry in entries[:3]),
        "measurements.parquet": parquet_bytes(entries[3:]),
    }


@st.composite
def campaigns(draw: st.DrawFn) -> Case:
    """A folder of measurements, one file of which was changed, and what goes on with it."""
    files = dict(_campaign())
    name = draw(st.sampled_from(sorted(files)))
    if name == "measurements.jsonl" and draw(st.booleans()):
        lines = [json.loads(line) for line in files[name].splitlines()]
        number = draw(st.integers(0, len(lines) - 1))
        lines[number] = draw(changed(lines[number]))
        files[name] = b"".join(json.dumps(line).encode(errors="surrogatepass") + b"\n" for line in lines)
    elif name == "measurements.parquet" and draw(st.booleans()):
        files[name] = _changed_parquet(draw, files[name])
    else:
        files[name] = draw(damaged(files[name], (*_JSON_TOKENS, b"PAR1", b"\xff" * 4, b"\0" * 8)))
    if draw(st.sampled_from([False, False, False, True])):
        del files[draw(st.sampled_from(sorted(files)))]
    return Case("campaign", _MEASURE, {f"device/{name}": data for name, data in files.items()})


_MEASURE = ("profile", "-o", "device", "--sets", "100", "-q")


def _changed_parquet(draw: st.DrawFn, data: bytes) -> bytes:
    """A sound Parquet file of other rows or columns."""
    import pyarrow as pa
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(pa.BufferReader(data))
    number, name = draw(st.integers(0, table.num_columns - 1)), draw(st.sampled_from(table.column_names))
    match draw(st.sampled_from(["value", "value", "value", "null", "type", "remove", "rename", "repeat", "none"])):
        case "value":
            rows = table.to_pylist()
            rows[draw(st.integers(0, len(rows) - 1))][name] = draw(JUNK)
            try:
                table = pa.Table.from_pylist(rows, schema=table.schema)
            except (pa.ArrowException, OverflowError, TypeError, ValueError, AttributeError):
                table = table.slice(1)  # no such value has that type
        case "null":
            table = table.set_column(number, table.field(number), pa.nulls(table.num_rows, table.field(number).type))
        case "type":
            table = table.set_column(number, table.column_names[number], pa.array(["x"] * table.num_rows))
        case "remove":
            table = table.remove_column(number)
        case "rename":
            table = table.rename_columns([draw(st.sampled_from([each, "x"])) for each in table.column_names])
        case "repeat":
            table = pa.concat_tables([table] * draw(st.sampled_from([2, 100])))
        case "none":
            table = table.slice(0, 0)
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression=draw(st.sampled_from(["zstd", "none", "gzip"])))
    return bytes(sink.getvalue().to_pybytes())


@cache
def _recordings() -> tuple[bytes, ...]:
    """Index files: one table's lookups, and a batch of several tables; as torch writes them now, and as it did."""
    import torch

    lengths = torch.tensor([[2, 0, 1], [1, 1, 3]])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.flatten().cumsum(0)])
    batch = (torch.arange(int(offsets[-1])) % 5, offsets, lengths)
    found = []
    for content in (torch.tensor([3, 1, 1, 7]), batch):
        for new in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=new)
            found += [buffer.getvalue(), gzip.compress(buffer.getvalue(), mtime=0)]
    return tuple(found)


@st.composite
def index_files(draw: st.DrawFn) -> Case:
    """A file of recorded lookups that was changed, and what reads it."""
    data = draw(st.sampled_from(_recordings()))
    tokens = (b"\x80\x02", b"cos\nsystem\n", b"PK\x03\x04", b"\x1f\x8b", b"\xff" * 8, b"\0" * 8, b"R.", b"i")
    if draw(st.booleans()) and data[:2] == b"\x1f\x8b":
        data = gzip.compress(draw(damaged(gzip.decompress(data), tokens)), mtime=0)
    else:
        data = draw(damaged(data, tokens))
    position = draw(st.sampled_from([{}, {"table": 0}, {"table": 1}, {"table": 9}]))
    table = {"name": "t", "rows": 100, "access": {"indices": "lookups.pt", **position}}
    files = {"lookups.pt": data, "model.toml": toml_text(_base("h100-80gb", [table], {})).encode()}
    arguments = draw(st.sampled_from([_COMPILE, ("import", "dlrm", "lookups.pt", "-o", "new.toml", "-q")]))
    return Case("index file", arguments, files)


# --- Arguments --------------------------------------------------------------------------------------------------------

# Commands that measure, train or import code do so for minutes, or whatever they are told: only what they refuse.
_POSITIONS = ["model.toml", "model.plan.json", "old.plan.json", "folder", ".", "-", "", "no/such.toml", "*.toml", "t0"]
_POSITIONS += ["HEAD:model.plan.json", "SH101", "SH999", "spec", "plan", "/dev/null", "é.toml", "--", "model.toml/x"]
_VALUES = _split("""-1 0 1 2 1.5 nan inf 1e9 99999999999999999999 x json text markdown csv torchrec hugectr fast
    h100-80gb h100-80gb,x 1,2 1,,2 a=1 = 5% 2GiB cluster.hosts=2 table.t0.dim=8 table.*.rows= cluster=1 model.name="
    x.y.z=[1 table.0.dim=8 cluster.devices_per_host=1,4 h100-80gb=4 model.outputs=fp16 table.row_wise.pooling=3""")
_COMMANDS = {
    "compile": ("model.toml", ["--seed", "--effort", "--set", "--base", "--max-moved", "--time-limit", "-o"]),
    "validate": ("model.toml", ["--format", "-q"]),
    "check": ("model.toml", ["--frozen", "--update", "--base", "--format", "--jobs"]),
    "report": ("model.plan.json", ["-o", "--base", "--force"]),
    "explain": ("model.plan.json", ["--spec", "--set", "--format"]),
    "diff": ("model.plan.json old.plan.json", ["--format", "--exit-code"]),
    "migrate": ("model.plan.json old.plan.json", ["--format"]),
    "export": ("model.plan.json", ["--to", "-o", "--force"]),
    "sweep": ("model.toml", ["--devices", "--hosts", "--device", "--vary", "--set", "--weak", "--price", "--picture"]),
    "rule": ("SH101", ["--format"]),
    "schema": ("spec", []),
    "devices": ("", []),
    "bench --list": ("model.toml", ["--suite", "--strategy", "--problems"]),
    "measure": ("model.plan.json", ["--spec", "--update"]),
    "import dlrm": ("model.toml", ["-o", "--dim", "--hosts", "--device", "--force"]),
    "init --from no_such_module:x": ("", ["-o", "--module", "--devices-per-host"]),
}
_FLAGS = {"--frozen", "--update", "--force", "--exit-code", "--weak", "-q"}


@st.composite
def command_lines(draw: st.DrawFn) -> Case:
    """Any arguments, in a folder with a spec and plans."""
    command = draw(st.sampled_from(sorted(_COMMANDS)))
    usual, options = _COMMANDS[command]
    words = command.split() + (usual.split() if draw(st.sampled_from([True, True, False])) else [])
    for option in draw(st.lists(st.sampled_from([*options, *options, "", "-q", "-h", "--bogus"]), max_size=4)):
        words += [option] * bool(option)
        if option not in _FLAGS and draw(st.sampled_from([True, True, True, False])):
            words.append(draw(st.sampled_from([*_VALUES, *_VALUES, *_POSITIONS])))
    spec, plan = sound_plans()[0]
    files = {"model.toml": spec, "model.plan.json": plan, "old.plan.json": sound_plans()[1][1], "folder/x": b""}
    return Case("arguments", tuple(words), files, stdin=plan)


KINDS: dict[str, Callable[[], st.SearchStrategy[Case]]] = {
    "valid-specs": valid_specs,
    "broken-specs": broken_specs,
    "plans": plans,
    "profiles": profiles,
    "campaigns": campaigns,
    "index-files": index_files,
    "arguments": command_lines,
}

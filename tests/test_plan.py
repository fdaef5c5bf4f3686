import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardc.diagnostics import DiagnosticError
from shardc.plan import Plan, plan_bytes, plan_schema, read_plan


def shard(rank: int, row: int, rows: int) -> dict:
    return {"placement": f"rank:{rank}/cuda:{rank}", "shard_offsets": [row, 0], "shard_sizes": [rows, 16]}


def document() -> dict:
    return {
        "format": 1,
        "model": {
            "name": "two-towers",
            "module": "ebc",
            "global_batch": 512,
            "optimizer": "sgd",
            "weights": "fp32",
            "outputs": "fp16",
        },
        "cluster": {"device": "h100-80gb", "hosts": 1, "devices_per_host": 2},
        "digests": {"spec": "sha256:00", "profile": None},
        "tool": {"name": "shardc", "version": "0.1.0", "seed": 0},
        "plan": {
            "ebc": {
                "user": {
                    "sharding_type": "row_wise",
                    "compute_kernel": "fused",
                    "ranks": [0, 1],
                    "shards": [shard(0, 0, 50), shard(1, 50, 49)],
                },
                "country": {"sharding_type": "data_parallel", "compute_kernel": "dense", "ranks": [0, 1]},
            }
        },
        "score": {
            "step_time_ms": 1.25,
            "phases": {"forward": 0.5, "backward": 0.75},
            "balance": 0.9,
            "devices": [
                {
                    "rank": rank,
                    "forward_ms": 0.5,
                    "backward_ms": None,
                    "memory_bytes": 1000,
                    "memory_limit_bytes": 2000,
                }
                for rank in (0, 1)
            ],
        },
        "bound": {"step_time_ms": 1.2, "gap": 0.041666666},
        "chosen": {"strategy": "greedy", "reason": "best score"},
        "candidates": [
            {"strategy": "greedy", "step_time_ms": 1.25, "feasible": True, "reason": "best score"},
            {"strategy": "policy", "step_time_ms": None, "feasible": False, "reason": "no policy"},
        ],
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.plan.json"


def read(path: Path, content: object) -> Plan:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_plan(path)


def findings(path: Path, content: object) -> list[tuple[str, str]]:
    with pytest.raises(DiagnosticError) as raised:
        read(path, content)
    return [(finding.code, finding.message) for finding in raised.value.diagnostics]


def test_what_is_written_is_what_is_read(path: Path) -> None:
    plan = read(path, document())
    written = plan_bytes(plan)
    again = read(path, written)
    assert again.plan == plan.plan
    assert again.bound is not None and again.bound.gap == 0.0416667
    assert plan_bytes(again) == written
    assert written.endswith(b"}\n")


def test_bytes_do_not_depend_on_the_order_of_members(path: Path) -> None:
    def backwards(value: object) -> object:
        return {key: backwards(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    assert plan_bytes(read(path, backwards(document()))) == plan_bytes(read(path, document()))


def test_a_plan_is_laid_out_for_review(path: Path) -> None:
    written = plan_bytes(read(path, document())).decode()
    digest = json.loads(written)["digest"]
    assert written.splitlines() == [
        "{",
        '  "bound": {"gap": 0.0416667, "step_time_ms": 1.2},',
        '  "candidates": [',
        '    {"feasible": true, "reason": "best score", "step_time_ms": 1.25, "strategy": "greedy"},',
        '    {"feasible": false, "reason": "no policy", "step_time_ms": null, "strategy": "policy"}',
        "  ],",
        '  "chosen": {"reason": "best score", "strategy": "greedy"},',
        '  "cluster": {"device": "h100-80gb", "devices_per_host": 2, "hosts": 1},',
        f'  "digest": "{digest}",',
        '  "digests": {"cost": "profile", "measurements": null, "profile": null, "spec": "sha256:00"},',
        '  "format": 1,',
        '  "model": {',
        '    "global_batch": 512,',
        '    "module": "ebc",',
        '    "name": "two-towers",',
        '    "optimizer": "sgd",',
        '    "outputs": "fp16",',
        '    "weights": "fp32"',
        "  },",
        '  "plan": {',
        '    "ebc": {',
        '      "country": {"compute_kernel": "dense", "ranks": [0, 1], "sharding_type": "data_parallel"},',
        '      "user": {',
        '        "compute_kernel": "fused",',
        '        "ranks": [0, 1],',
        '        "sharding_type": "row_wise",',
        '        "shards": [',
        '          {"placement": "rank:0/cuda:0", "shard_offsets": [0, 0], "shard_sizes": [50, 16]},',
        '          {"placement": "rank:1/cuda:1", "shard_offsets": [50, 0], "shard_sizes": [49, 16]}',
        "        ]",
        "      }",
        "    }",
        "  },",
        '  "score": {',
        '    "balance": 0.9,',
        '    "devices": [',
        '      {"backward_ms": null, "forward_ms": 0.5, "memory_bytes": 1000, "memory_limit_bytes": 2000, "rank": 0},',
        '      {"backward_ms": null, "forward_ms": 0.5, "memory_bytes": 1000, "memory_limit_bytes": 2000, "rank": 1}',
        "    ],",
        '    "phases": {"backward": 0.75, "forward": 0.5},',
        '    "step_time_ms": 1.25,',
        '    "step_time_p90_ms": null',
        "  },",
        '  "tool": {"name": "shardc", "seed": 0, "version": "0.1.0"}',
        "}",
    ]


def test_ranks_of_a_large_cluster_fill_lines(path: Path) -> None:
    content = document()
    content["plan"]["ebc"]["country"]["ranks"] = list(range(100))
    written = plan_bytes(read(path, content))
    assert json.loads(written)["plan"] == content["plan"]
    lines = written.decode().splitlines()
    assert max(map(len, lines)) <= 120
    assert sum(line.strip(" ,0123456789") == "" for line in lines) < 10


texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.floats(0, 1e300), texts, st.dictionaries(texts, st.floats(0, 1e6), max_size=20))
def test_any_plan_is_canonical(time: float, name: str, phases: dict[str, float]) -> None:
    content = document()
    content["score"].update(step_time_ms=time, phases=phases)
    content["plan"]["ebc"][name] = content["plan"]["ebc"].pop("user")
    plan = Plan.model_validate(content)
    written = plan_bytes(plan)
    stated = json.loads(written)
    assert stated["score"]["step_time_ms"] == pytest.approx(time, rel=5e-6)
    assert stated["score"]["phases"] == pytest.approx(phases, rel=5e-6)
    again = Plan.model_validate_json(written, strict=True)
    assert again.plan == plan.plan
    assert plan_bytes(again) == written


def test_numbers_beyond_json_are_not_written() -> None:
    content = document()
    content["score"]["step_time_ms"] = float("inf")
    with pytest.raises(ValueError):
        Plan.model_validate(content)


def test_unknown_members_are_ignored(path: Path) -> None:
    content = document()
    content["comment"] = content["plan"]["ebc"]["user"]["min_partition"] = content["score"]["new"] = {"a": [1]}
    assert read(path, content) == read(path, document())


def test_a_missing_file(path: Path) -> None:
    with pytest.raises(DiagnosticError) as raised:
        read_plan(path)
    assert [finding.code for finding in raised.value.diagnostics] == ["SH001"]


def test_a_newer_format(path: Path) -> None:
    for version in (2, 10**30):
        ((code, message),) = findings(path, {"format": version, "everything": "else"})
        assert code == "SH303"
        assert str(version) in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a plan: it is empty"),
        (b"{", "not JSON"),
        (b"<<<<<<< HEAD\n{}", "the plan has conflicts of a merge"),
        (b"[]", "a plan is a JSON object"),
        (b'"plan"', "a plan is a JSON object"),
        (b"{}", "is not a plan: format: missing"),
        (b'{"format": 0}', "format"),
        (b'{"format": "1"}', "format"),
        (b'{"format": NaN}', "NaN"),
        (b'{"score": {"balance": -Infinity}}', "-Infinity"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', '"c" occurs twice'),
        (b'{"format": ' + b"9" * 5000 + b"}", "is not a plan: a number in it has more digits"),
        (b'{"format": ' + b"9" * 5000 + b"x]]}}", "is not a plan: a number in it has more digits"),
        (b'{"format": NaNx]]}}', "is not a plan: NaN is not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (json.dumps(document()).replace("user", r"\ud800").encode(), "JSON"),
    ],
)
def test_what_is_not_a_plan(path: Path, content: bytes, says: str) -> None:
    found = findings(path, content)
    assert {code for code, _ in found} == {"SH302"}
    assert says in found[0][1]


def test_bytes_that_are_not_text(path: Path) -> None:
    assert [code for code, _ in findings(path, b'{"format": "\xff"}')] == ["SH003"]


def test_a_syntax_error_is_located(path: Path) -> None:
    with pytest.raises(DiagnosticError) as raised:
        read(path, b'{\n  "format": 1,\n  "plan": }\n')
    assert str(raised.value).startswith(f"{path}:3:11: SH302 ")


@pytest.mark.parametrize(
    ("content", "place", "marked", "help"),
    [
        ('{"a": [{"b": 1},\n  {"b": "}", "c": 2,\n   "b" : 3}], "a": 0}', "3:4", '"b"', "leave one of the two"),
        ('{"\\u0061": {"x": 1},\r\n "a": {}}', "2:2", '"a"', "leave one of the two"),
        ('{"a": {"b": "NaN",\n "c": [1, -Infinity]}}', "2:11", "-Infinity", "compile the spec again"),
        ('{"a": "' + "9" * 5000 + '",\n "b": -' + "9" * 5000 + "}", "2:7", "-" + "9" * 5000, None),
        ('{\n"format": 1, "model": 7}', "2:23", "7", None),
    ],
)
def test_what_a_parser_does_not_place_is_located(
    path: Path, content: str, place: str, marked: str, help: str | None
) -> None:
    with pytest.raises(DiagnosticError) as raised:
        read(path, content.encode())
    (finding,) = raised.value.diagnostics
    at = finding.location
    assert at is not None
    assert str(at) == f"{path}:{place}"
    assert at.text[at.column - 1 :][: at.length] == marked
    assert finding.help == help if help is None else help in (finding.help or "")


@pytest.mark.parametrize(
    ("old", "new", "marked"),
    [
        ('"balance": 0.9', '"balance": "high"', '"high"'),
        ('"rank": 1', '"rank": 1.5', "1.5"),
        ('"gap": 0.0416667, ', "", '"bound"'),  # what is missing is missing there
    ],
)
def test_a_member_that_no_plan_has_is_located(path: Path, old: str, new: str, marked: str) -> None:
    text = plan_bytes(Plan.model_validate(document())).decode()
    assert text.count(old) == 1
    with pytest.raises(DiagnosticError) as raised:
        read(path, text.replace(old, new).encode())
    at = raised.value.diagnostics[0].location
    assert at is not None
    assert at.text[at.column - 1 :][: at.length] == marked
    assert at.line == text[: text.index(old)].count("\n") + 1


def edited(*route: str | int, value: object) -> dict:
    content = document()
    at = content
    for part in route[:-1]:
        at = at[part]
    at[route[-1]] = value
    return content


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (edited("plan", "ebc", "user", "ranks", 1, value=-1), "plan.ebc.user.ranks[1]"),
        (edited("plan", "ebc", "user", "ranks", 1, value="1"), "plan.ebc.user.ranks[1]"),
        (edited("plan", "ebc", "user", "ranks", 1, value=10**30), "plan.ebc.user.ranks[1]"),
        (edited("plan", "ebc", "user", "sharding_type", value="diagonal_wise"), "plan.ebc.user.sharding_type"),
        (edited("plan", "ebc", "user", "shards", 0, "shard_sizes", value=[50]), "plan.ebc.user.shards[0].shard_sizes"),
        (edited("plan", "ebc", "user", "shards", 1, "placement", value="gpu 1"), "plan.ebc.user.shards[1].placement"),
        (edited("plan", "ebc", value=[]), "plan.ebc"),
        (edited("plan", value={}), "plan"),
        (edited("plan", "ebc", value={}), "plan.ebc"),
        (edited("format", value=True), "format"),
        (edited("score", "step_time_ms", value="1.0"), "score.step_time_ms"),
        (edited("score", "devices", 1, "memory_bytes", value=0.5), "score.devices[1].memory_bytes"),
        (edited("cluster", "hosts", value=0), "cluster.hosts"),
    ],
)
def test_a_wrong_member_is_named(path: Path, content: dict, where: str) -> None:
    ((code, message),) = findings(path, content)
    assert code == "SH302"
    assert f"{path} is not a plan: {where}: " in message


def test_of_many_wrong_members_only_some_are_listed(path: Path) -> None:
    with pytest.raises(DiagnosticError) as raised:
        read(path, json.dumps(edited("plan", value={str(i): 0 for i in range(1000)})).encode())
    (finding,) = raised.value.diagnostics
    assert finding.message == f"{path} is not a plan: plan.0: expected an object"
    assert (len(finding.notes), finding.notes[-1]) == (11, "and 989 more")


def test_of_a_long_array_one_wrong_element_is_told(path: Path) -> None:
    with pytest.raises(DiagnosticError, match=r"plan.ebc.user.shards\[0\].shard_offsets: missing") as raised:
        read(path, json.dumps(edited("plan", "ebc", "user", "shards", value=[{}] * 100_000)).encode())
    assert len(raised.value.diagnostics[0].notes) == 2


def test_more_tables_than_a_spec_may_have(path: Path) -> None:
    tables = {f"t{n}": {} for n in range(65_537)}
    with pytest.raises(DiagnosticError, match=r"SH302 .*: expected at most 131072 tables, found 131074"):
        read(path, json.dumps(edited("plan", value={"a": tables, "b": tables})).encode())


def test_schema_accepts_plans_and_refuses_others() -> None:
    schema = plan_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(json.loads(plan_bytes(Plan.model_validate(document()))))
    for wrong in (
        edited("format", value=2),
        edited("plan", "ebc", "user", "shards", 0, "shard_sizes", value=[1, 2, 3]),
        edited("plan", "ebc", "user", "ranks", value=["0"]),
        edited("bound", value=[]),
    ):
        assert not validator.is_valid(wrong)


def test_schema_is_draft_07_and_describes_every_member() -> None:
    schema = plan_schema()
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "prefixItems" not in json.dumps(schema)
    for model in (schema, *schema["definitions"].values()):
        assert model["description"]
        for member in model["properties"].values():
            # Draft-07 ignores what stands beside a reference; the definition it leads to is described.
            assert member.get("description") or list(member) == ["$ref"]


def test_reading_plans_costs_no_heavy_import() -> None:
    code = "import sys, shardc.plan; assert not {'numpy', 'torch', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

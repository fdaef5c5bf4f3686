from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import tomli

from shardc.check.document import check_schema
from shardc.pipeline import load, run
from shardc.plan import plan_bytes, plan_schema
from shardc.spec import spec_schema

ROOT = Path(__file__).parents[1]
SCHEMAS = {"spec": spec_schema, "plan": plan_schema, "check": check_schema}
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))


def committed(document: str) -> dict:
    return json.loads((ROOT / "schemas" / f"{document}.schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("document", SCHEMAS)
def test_committed_schemas_are_current(document):
    current = SCHEMAS[document]()
    jsonschema.Draft7Validator.check_schema(current)
    assert committed(document) == current, f"run: shardc schema {document} > schemas/{document}.schema.json"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_fit_the_spec_schema(example):
    jsonschema.validate(tomli.loads(example.read_text(encoding="utf-8")), committed("spec"), jsonschema.Draft7Validator)


def test_compiled_plans_fit_the_plan_schema():
    table = {"rows": 1000, "dim": 16, "pooling": 2}
    spec = {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 1024},
        "cluster": {
            "device": "h100-80gb",
            "hosts": 2,
            "devices_per_host": 2,
            "host": [{"hosts": [1], "device": "a100-40gb"}],
            "rank": [{"ranks": [1], "memory": "40GB"}],
            "host_memory": "1TiB",
        },
        "table": [
            {"name": "whole", "sharding": ["table_wise"], **table},
            {"name": "columns", "sharding": ["column_wise"], **table},
            {"name": "rows", "sharding": ["row_wise"], **table},
            {"name": "replicas", "sharding": ["data_parallel"], **table},
            {"name": "host_columns", "sharding": ["table_column_wise"], **table},
            {"name": "host_rows", "sharding": ["table_row_wise"], **table},
            {"name": "grid", "sharding": ["grid_shard"], **table},
            {
                "name": "cached",
                "kernels": ["fused_uvm_caching"],
                "sharding": ["table_wise"],
                "cache_ratio": 0.1,
                **table,
            },
        ],
    }
    plan = run(load(spec), effort="fast").plan
    assert len({placed.sharding_type for placed in plan.plan["ebc"].values()}) == 7
    assert plan.cluster.host_devices == ("h100-80gb", "a100-40gb")
    jsonschema.validate(spec, committed("spec"), jsonschema.Draft7Validator)
    jsonschema.validate(json.loads(plan_bytes(plan)), committed("plan"), jsonschema.Draft7Validator)


@pytest.mark.parametrize("command", ["check", "check --frozen", "validate"])
def test_findings_fit_the_check_schema(command, tmp_path, monkeypatch, run_command):
    monkeypatch.chdir(tmp_path)
    for example in EXAMPLES:
        (tmp_path / example.name).write_bytes(example.read_bytes())
        plan = example.with_suffix(".plan.json")
        (tmp_path / plan.name).write_bytes(plan.read_bytes())
    (tmp_path / "planless.toml").write_bytes(EXAMPLES[0].read_bytes())
    (tmp_path / "broken.toml").write_text("format = 1\n[modell]\n")
    names = [path.name for path in sorted(tmp_path.glob("*.toml"))]
    done = run_command(*command.split(), *names, "missing.toml", "--format", "json")
    document = json.loads(done.out)
    jsonschema.validate(document, committed("check"), jsonschema.Draft7Validator)
    assert [len(document["specs"]), document["exit_code"], done.code] == [len(names) + 1, 2, 2]
    assert any(finding["location"] for entry in document["specs"] for finding in entry["findings"])

from __future__ import annotations

import json
from xml.etree import ElementTree

from shardc.check.outcome import Outcome
from shardc.diagnostics import Diagnostic, Location
from shardc.render.findings import as_github, as_json, as_junit, as_sarif

AT = Location("models/a,b.toml", 3, 7, 4, 'gap = "1%"')
ERROR = Diagnostic("SH402", "50% above:\n<its> bound & \x01", AT, help="search longer")
WARNING = Diagnostic("SH406", "the profile has changed", severity="warning")
OUTCOMES = [
    Outcome("models/a,b.toml", "models/a,b.plan.json", 1, (ERROR, WARNING)),
    Outcome("c.toml", "c.plan.json", 0),
]


def test_github_annotations_are_escaped(monkeypatch):
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    error, warning = as_github(OUTCOMES).splitlines()
    assert error == (
        "::error file=models/a%2Cb.toml,line=3,col=7,endColumn=11,title=SH402 optimality gap over budget::"
        "50%25 above:%0A<its> bound & \x01%0Ahelp: search longer"
    )
    assert warning.startswith("::warning file=models/a%2Cb.toml,line=1,title=SH406 ")


def test_github_files_are_relative_to_the_checkout(monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    assert "file=models/c.toml," in as_github([Outcome("c.toml", "c.plan.json", 1, (WARNING,))])


def test_junit_is_xml_with_a_case_for_each_finding():
    root = ElementTree.fromstring(as_junit(OUTCOMES).encode())
    first, second = root
    assert (first.get("tests"), first.get("failures"), first.get("errors")) == ("2", "1", "0")
    assert first[0][0].tag == "failure"
    assert "<its> bound &" in first[0][0].text
    assert first[1][0].tag == "system-out"
    assert [len(case) for case in second] == [0]


def test_sarif_results_point_to_their_rules_and_places():
    (run,) = json.loads(as_sarif(OUTCOMES))["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rules[result["ruleIndex"]]["id"] for result in run["results"]] == ["SH402", "SH406"]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "models/a%2Cb.toml"
    assert place["region"] == {"startLine": 3, "startColumn": 7, "endColumn": 11}
    assert [result["level"] for result in run["results"]] == ["error", "warning"]


def test_json_says_everything():
    document = json.loads(as_json(OUTCOMES))
    assert (document["format"], document["exit_code"]) == (1, 1)
    found = document["specs"][0]["findings"][0]
    assert (found["code"], found["location"]["line"], found["help"]) == ("SH402", 3, "search longer")
    assert document["specs"][1]["findings"] == []

from __future__ import annotations

import json
import os
import re
import subprocess
from xml.etree import ElementTree

from shardc.check.outcome import Outcome
from shardc.diagnostics import Diagnostic, Location
from shardc.render.findings import as_github, as_json, as_junit, as_sarif
from shardc.rules import read_rules

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
        "50%25 above:%0A<its> bound & \\x01%0Ahelp: search longer"
    )
    assert warning.startswith("::warning file=models/a%2Cb.toml,line=1,title=SH406 ")


def test_github_files_are_relative_to_the_checkout(monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    assert "file=models/c.toml," in as_github([Outcome("c.toml", "c.plan.json", 1, (WARNING,))])


def test_files_are_relative_to_the_top_of_the_repository(monkeypatch, tmp_path):
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    for folder in ("outside", "here/sub", "here/models"):
        (tmp_path / folder).mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tmp_path / "here")], check=True)
    monkeypatch.chdir(tmp_path / "here/sub")
    specs = ("../models/a.toml", "c.toml", "../../outside/d.toml")
    outcomes = [Outcome(spec, "x.plan.json", 1, (WARNING,)) for spec in specs]
    expected = ["models/a.toml", "sub/c.toml", "../../outside/d.toml"]
    assert re.findall("file=([^,]*),", as_github(outcomes)) == expected
    assert re.findall('"uri": "(.*toml)"', as_sarif(outcomes)) == expected


def test_github_properties_keep_their_ends():
    at = Location("a:b,c%.toml", 1, 1, 0, "")
    (line,) = as_github([Outcome("x.toml", "x.plan.json", 1, (Diagnostic("SH402", "a::b,\r\nc", at),))]).splitlines()
    assert line == (
        "::error file=a%3Ab%2Cc%25.toml,line=1,col=1,endColumn=2,title=SH402 optimality gap over budget::a::b,%0D%0Ac"
    )


def test_junit_is_xml_with_a_case_for_each_finding():
    root = ElementTree.fromstring(as_junit(OUTCOMES).encode())
    first, second = root
    assert (first.get("tests"), first.get("failures"), first.get("errors")) == ("2", "1", "0")
    assert first[0][0].tag == "failure"
    assert "<its> bound &" in first[0][0].text
    assert first[1][0].tag == "system-out"
    assert [len(case) for case in second] == [0]


def test_junit_counts_what_it_holds():
    broken = Outcome("d.toml", "d.plan.json", 2, (ERROR,))
    root = ElementTree.fromstring(as_junit([*OUTCOMES, broken]).encode())
    for suite in (root, *root):
        cases = suite.iter("testcase")
        tags = [child.tag for case in cases for child in case]
        held = (len(list(suite.iter("testcase"))), tags.count("failure"), tags.count("error"))
        assert tuple(int(suite.get(name)) for name in ("tests", "failures", "errors")) == held
    assert [root.get(name) for name in ("tests", "failures", "errors")] == ["4", "1", "1"]


def test_sarif_results_point_to_their_rules_and_places():
    (run,) = json.loads(as_sarif(OUTCOMES))["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rules[result["ruleIndex"]]["id"] for result in run["results"]] == ["SH402", "SH406"]
    known = read_rules()["SH402"]
    assert rules[0]["shortDescription"]["text"] == known.title
    assert rules[0]["fullDescription"]["text"] == known.meaning
    assert rules[0]["help"]["text"] == known.fix
    assert known.example.text in rules[0]["help"]["markdown"]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "models/a%2Cb.toml"
    assert place["region"] == {"startLine": 3, "startColumn": 7, "endColumn": 11}
    assert [result["level"] for result in run["results"]] == ["error", "warning"]


def test_sarif_has_what_the_schema_requires():
    far = Diagnostic("SH402", "over", Location("/far/a b.toml", 1, 1, 0, ""))
    for outcomes in ([], OUTCOMES, [Outcome("./c.toml", "c.plan.json", 2, (WARNING, far))]):
        log = json.loads(as_sarif(outcomes))
        assert log["version"] == "2.1.0"
        assert log["$schema"].endswith("sarif-2.1.0.json")
        (run,) = log["runs"]
        driver = run["tool"]["driver"]
        assert driver["name"] == "shardc"
        rules = [rule["id"] for rule in driver["rules"]]
        assert len(set(rules)) == len(rules)
        for result in run["results"]:
            assert rules[result["ruleIndex"]] == result["ruleId"]
            assert result["level"] in {"error", "warning"}
            assert result["message"]["text"]
            (location,) = result["locations"]
            region = location["physicalLocation"]["region"]
            assert region["startLine"] >= 1
            assert region.get("startColumn", 1) < region.get("endColumn", 2)
    uris = [result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in run["results"]]
    assert uris == ["c.toml", "file:///far/a%20b.toml"]


def test_sarif_files_below_the_current_folder_are_relative(monkeypatch, tmp_path):
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    outcome = Outcome(str(tmp_path / "models" / "c.toml"), "c.plan.json", 1, (WARNING,))
    assert '"uri": "models/c.toml"' in as_sarif([outcome])


def test_files_whose_names_are_not_text():
    name = os.fsdecode(b"\xff.toml")
    outcome = Outcome(name, "x.plan.json", 1, (WARNING,))
    assert '"uri": "%FF.toml"' in as_sarif([outcome])
    assert ElementTree.fromstring(as_junit([outcome]))[0].get("name") == r"\udcff.toml"


def test_json_says_everything():
    document = json.loads(as_json(OUTCOMES))
    assert (document["format"], document["exit_code"]) == (1, 1)
    found = document["specs"][0]["findings"][0]
    assert (found["code"], found["location"]["line"], found["help"]) == ("SH402", 3, "search longer")
    assert document["specs"][1]["findings"] == []


def names(outcome: Outcome) -> list[str]:
    """Names of findings, which JUnit and SARIF have alike."""
    junit = [case.get("name") for case in ElementTree.fromstring(as_junit([outcome])).iter("testcase")]
    results = json.loads(as_sarif([outcome]))["runs"][0]["results"]
    assert junit == [result["partialFingerprints"]["shardcFinding/v1"] for result in results]
    return junit


def test_names_of_findings_stay_when_lines_are_added_above():
    def found(line: int) -> Outcome:
        places = (
            Location("m.toml", line, 7, 4, 'gap = "1%"'),
            Location("m.toml", line + 1, 1, 9, "[[table]]"),
            Location("t.csv", line, 3, 5, "a,-1 "),
            Location("m.plan.json", line, 20, 1, '  "ranks": [0, 1'),
            Location("m.toml", 1, 1, 1, "# a comment" * line),
            Location("m.toml", line + 9, 1, 6, "poolin = 1"),
            Location("m.toml", line + 19, 1, 6, "poolin = 1"),
            Location("m.toml", line + 29, 1, 6, "poolin = 1"),
        )
        messages = (
            "over",
            "missing",
            "negative",
            "not JSON",
            "of no line",
            *(f'unknown key in table "{name}"' for name in "aab"),
        )
        findings = (Diagnostic("SH101", text, at) for text, at in zip(messages, places, strict=True))
        return Outcome("m.toml", "m.plan.json", 1, (*findings, WARNING))

    expected = [
        "SH101 gap",
        "SH101 [[table]]",
        "SH101 t.csv -1",
        "SH101 m.plan.json ranks",
        "SH101",
        "SH101 poolin in a",
        "SH101 poolin in a (2)",
        "SH101 poolin in b",
        "SH406",
    ]
    assert names(found(3)) == names(found(30)) == expected


def test_what_is_about_no_spec_is_told_beside_the_rest():
    apart = [Diagnostic("SH002", "no look"), Diagnostic("SH002", "a link", severity="warning")]
    document = json.loads(as_json(OUTCOMES, apart))
    assert document["exit_code"] == 2
    assert [(told["severity"], told["message"]) for told in document["diagnostics"]] == [
        ("error", "no look"),
        ("warning", "a link"),
    ]
    assert json.loads(as_json(OUTCOMES, apart[1:]))["exit_code"] == 1
    (run,) = json.loads(as_sarif(OUTCOMES, apart))["runs"]
    (invocation,) = run["invocations"]
    assert [told["level"] for told in invocation["toolExecutionNotifications"]] == ["error", "warning"]
    assert len(run["results"]) == 2
    assert as_github(OUTCOMES, apart).splitlines()[:2] == [
        "::error title=SH002 not a readable file::no look",
        "::warning title=SH002 not a readable file::a link",
    ]
    root = ElementTree.fromstring(as_junit(OUTCOMES, apart))
    assert [root.get(name) for name in ("tests", "failures", "errors")] == ["5", "1", "1"]

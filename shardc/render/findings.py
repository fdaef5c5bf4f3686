"""Findings for machines: JSON, GitHub annotations, SARIF 2.1.0 and JUnit XML, each whole in one text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from shardc import __version__
from shardc.check.document import check_document
from shardc.check.outcome import Outcome
from shardc.diagnostics import CODES, Diagnostic, concise, render
from shardc.rules import Rule, read_rules

_SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_json(outcomes: Sequence[Outcome], least: int = 0) -> str:
    """Return a JSON document (see `shardc.check.document`), with an exit code of at least so much."""
    return json.dumps(asdict(check_document(outcomes, least)), indent=2, ensure_ascii=False)


def as_github(outcomes: Sequence[Outcome], least: int = 0) -> str:
    """Return GitHub's workflow commands, one a finding: annotations on the lines of a pull request."""
    return "\n".join(_annotation(outcome, finding) for outcome in outcomes for finding in outcome.findings)


def as_sarif(outcomes: Sequence[Outcome], least: int = 0) -> str:
    """Return a SARIF 2.1.0 log of one run, with a rule for each code that was found."""
    codes = sorted({finding.code for outcome in outcomes for finding in outcome.findings})
    rules = read_rules()
    exit_code = max((outcome.exit_code for outcome in outcomes), default=least)
    run = {
        "tool": {
            "driver": {
                "name": "shardc",
                "version": __version__,
                "rules": [_rule(rules[code]) for code in codes],
            }
        },
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": exit_code < 2, "exitCode": exit_code}],
        "results": [
            _result(outcome, finding, codes.index(finding.code)) for outcome in outcomes for finding in outcome.findings
        ],
    }
    return json.dumps({"$schema": _SARIF, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False)


def as_junit(outcomes: Sequence[Outcome], least: int = 0) -> str:
    """Return JUnit XML: a suite for each spec, in it a case for each finding, or one that passed."""
    suites = [_suite(outcome) for outcome in outcomes]
    head = ('<?xml version="1.0" encoding="utf-8"?>', f'<testsuites name="shardc" {_counts(outcomes)}>')
    return "\n".join((*head, *suites, "</testsuites>"))


def _annotation(outcome: Outcome, finding: Diagnostic) -> str:
    at = finding.location
    place = {"file": _relative(at.file if at else outcome.spec), "line": str(at.line if at else 1)}
    if at:
        place |= {"col": str(at.column), "endColumn": str(at.column + max(at.length, 1))}
    place["title"] = f"{finding.code} {CODES[finding.code]}"
    properties = ",".join(f"{name}={_property(value)}" for name, value in place.items())
    return f"::{finding.severity} {properties}::{_data(_text(finding))}"


def _text(finding: Diagnostic) -> str:
    return "\n".join([finding.message, *([f"help: {finding.help}"] if finding.help else []), *finding.notes])


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _relative(file: str) -> str:
    """A path from the root of the workflow's checkout, else of the repository, else from the current folder.

    It is as it was where it is not below that.
    """
    root = os.path.realpath(os.environ.get("GITHUB_WORKSPACE") or _top() or os.curdir)
    path = os.path.relpath(os.path.realpath(file), root)
    return os.path.normpath(file) if path.split(os.sep)[0] == os.pardir else path


def _top() -> Path | None:
    """The folder above this one that is a repository of git, or a work tree of one."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), None)


def _uri(file: str) -> str:
    path = _relative(file)
    return Path(path).as_uri() if os.path.isabs(path) else quote(os.fsencode(path.replace(os.sep, "/")))


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.meaning},
        "help": {"text": rule.fix, "markdown": rule.markdown},
    }


def _result(outcome: Outcome, finding: Diagnostic, rule: int) -> dict[str, Any]:
    at = finding.location
    region = (
        {"startLine": at.line, "startColumn": at.column, "endColumn": at.column + max(at.length, 1)}
        if at
        else {"startLine": 1}
    )
    return {
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": finding.severity,
        "message": {"text": _text(finding)},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(at.file if at else outcome.spec)},
                    "region": region,
                }
            }
        ],
    }


def _suite(outcome: Outcome) -> str:
    cases = [_case(outcome, finding) for finding in outcome.findings]
    if not cases:
        cases = [f"    <testcase classname={_attribute(outcome.spec)} name={_attribute('check')}/>"]
    opening = f"  <testsuite name={_attribute(outcome.spec)} {_counts([outcome])}>"
    return "\n".join((opening, *cases, "  </testsuite>"))


def _counts(outcomes: Sequence[Outcome]) -> str:
    tests = sum(len(outcome.findings) or 1 for outcome in outcomes)
    counts = {"failure": 0, "error": 0}
    for outcome in outcomes:
        counts[_tag(outcome)] += sum(finding.severity == "error" for finding in outcome.findings)
    return f'tests="{tests}" failures="{counts["failure"]}" errors="{counts["error"]}"'


def _tag(outcome: Outcome) -> str:
    """What JUnit calls a finding: a failure, or an error where the spec could not be checked at all."""
    return "error" if outcome.exit_code > 1 else "failure"


def _case(outcome: Outcome, finding: Diagnostic) -> str:
    name = f"{finding.code} {finding.location or ''}".rstrip()
    opening = f"    <testcase classname={_attribute(outcome.spec)} name={_attribute(name)}>"
    text = escape(_in_xml(render([finding], color=False)))
    if finding.severity == "warning":
        return f"{opening}<system-out>{text}</system-out></testcase>"
    tag, message = _tag(outcome), _attribute(concise(finding))
    return f'{opening}<{tag} type="{finding.code}" message={message}>{text}</{tag}></testcase>'


def _attribute(text: str) -> str:
    return quoteattr(_in_xml(text))


def _in_xml(text: str) -> str:
    """Escape the characters that no XML may have, in any spelling."""
    return _NOT_XML.sub(lambda match: match[0].encode("unicode_escape").decode(), text)

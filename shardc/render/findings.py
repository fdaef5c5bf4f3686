"""Findings for machines: JSON, GitHub annotations, SARIF 2.1.0 and JUnit XML, each whole in one text."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from shardc import __version__
from shardc.check.document import check_document
from shardc.check.outcome import Outcome, exit_code
from shardc.diagnostics import CODES, Diagnostic, Location, concise, render, shown
from shardc.rules import Rule, read_rules

_SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_KEY = re.compile(r"""\s*["']?([\w.-]+)["']?\s*[=:]""")  # of a line of TOML or JSON
_TABLE = re.compile(r'\btable "([^"]*)"')
_LONG = 60  # characters of what has no key


def as_json(outcomes: Sequence[Outcome], apart: Sequence[Diagnostic] = ()) -> str:
    """Return a JSON document (see `shardc.check.document`).

    Args:
        outcomes: what became of specs.
        apart: what is about no spec: why nothing could be run, or what was left out.
    """
    return json.dumps(asdict(check_document(outcomes, apart)), indent=2, ensure_ascii=False)


def as_github(outcomes: Sequence[Outcome], apart: Sequence[Diagnostic] = ()) -> str:
    """Return GitHub's workflow commands, one a finding: annotations on the lines of a pull request."""
    return "\n".join(
        [_command(finding, {}) for finding in apart]
        + [_annotation(outcome, finding) for outcome in outcomes for finding in outcome.findings]
    )


def as_sarif(outcomes: Sequence[Outcome], apart: Sequence[Diagnostic] = ()) -> str:
    """Return a SARIF 2.1.0 log of one run, with a rule for each code that was found, and notifications of the rest."""
    codes = sorted({finding.code for outcome in outcomes for finding in outcome.findings})
    rules = read_rules()
    code = exit_code(outcomes, apart)
    invocation = {
        "executionSuccessful": code < 2,
        "exitCode": code,
        "toolExecutionNotifications": [
            {"descriptor": {"id": finding.code}, "level": finding.severity, "message": {"text": _text(finding)}}
            for finding in apart
        ],
    }
    run = {
        "tool": {
            "driver": {
                "name": "shardc",
                "version": __version__,
                "rules": [_rule(rules[code]) for code in codes],
            }
        },
        "columnKind": "unicodeCodePoints",
        "invocations": [invocation],
        "results": [
            _result(outcome, finding, name, codes.index(finding.code))
            for outcome in outcomes
            for finding, name in _named(outcome)
        ],
    }
    return json.dumps({"$schema": _SARIF, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False)


def as_junit(outcomes: Sequence[Outcome], apart: Sequence[Diagnostic] = ()) -> str:
    """Return JUnit XML: a suite for each spec, in it a case for each finding, or one that passed; one for the rest."""
    if apart:
        rest = Outcome("shardc", "shardc", exit_code((), apart), tuple(apart))
        outcomes = [rest, *outcomes]
    suites = [_suite(outcome) for outcome in outcomes]
    head = ('<?xml version="1.0" encoding="utf-8"?>', f'<testsuites name="shardc" {_counts(outcomes)}>')
    return "\n".join((*head, *suites, "</testsuites>"))


def _named(outcome: Outcome) -> Iterator[tuple[Diagnostic, str]]:
    """Yield findings with names that they keep where lines are added above: code, file, key and table.

    Those that would have the same name are numbered.
    """
    seen: Counter[str] = Counter()
    for finding in outcome.findings:
        parts = [finding.code]
        if at := finding.location:
            parts += [at.file] * (at.file != outcome.spec)
            parts.append(_marked(at))
        table = _TABLE.search(finding.message)
        if table and table[1] not in parts:
            parts.append(f"in {table[1]}")
        name = " ".join(filter(None, parts))
        seen[name] += 1
        yield finding, name if seen[name] == 1 else f"{name} ({seen[name]})"


def _marked(at: Location) -> str:
    """Return the key on the line of a place, else what is there; nothing for a file's or line's first character."""
    if (at.column, at.length) == (1, 1):
        return ""
    key = _KEY.match(at.text)
    return key[1] if key else at.text[at.column - 1 :][: min(at.length, _LONG)].strip()


def _annotation(outcome: Outcome, finding: Diagnostic) -> str:
    at = finding.location
    place = {"file": _relative(at.file if at else outcome.spec), "line": str(at.line if at else 1)}
    if at:
        place |= {"col": str(at.column), "endColumn": str(at.column + max(at.length, 1))}
    return _command(finding, place)


def _command(finding: Diagnostic, place: dict[str, str]) -> str:
    place = place | {"title": f"{finding.code} {CODES[finding.code]}"}
    properties = ",".join(f"{name}={_property(value)}" for name, value in place.items())
    return f"::{finding.severity} {properties}::{_data(_text(finding))}"


def _text(finding: Diagnostic) -> str:
    return "\n".join([finding.message, *([f"help: {finding.help}"] if finding.help else []), *finding.notes])


def _data(text: str) -> str:
    return shown(text, keep="\r\n").replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


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


def _result(outcome: Outcome, finding: Diagnostic, name: str, rule: int) -> dict[str, Any]:
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
        "partialFingerprints": {"shardcFinding/v1": name},
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
    cases = [_case(outcome, finding, name) for finding, name in _named(outcome)]
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


def _case(outcome: Outcome, finding: Diagnostic, name: str) -> str:
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

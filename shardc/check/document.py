"""The document that `shardc check` and `shardc validate` write with `--format json`. Members are added, not renamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from shardc.check.outcome import Outcome, exit_code
from shardc.diagnostics import Diagnostic

_From1 = Annotated[int, Field(ge=1)]
_ExitCode = Annotated[int, Field(ge=0, le=2, description="0: fine; 1: errors were found; 2: could not run.")]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a file something was found."""

    file: str
    line: _From1
    column: Annotated[int, Field(ge=1, description="In characters.")]
    length: Annotated[int, Field(ge=0, description="In characters.")]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was found."""

    code: Annotated[str, Field(pattern="^SH[0-9]{3}$", description="What shardc rule explains.")]
    severity: Literal["error", "warning"]
    message: str
    help: Annotated[str | None, Field(description="What to do about it.")]
    notes: Annotated[tuple[str, ...], Field(description="What else helps to understand it.")]
    location: Annotated[Place | None, Field(description="Null where it is about no place of a file.")]


@dataclass(frozen=True, slots=True)
class CheckedSpec:
    """What became of one spec."""

    spec: Annotated[str, Field(description="Its file; that of the plan where a plan has no spec.")]
    plan: Annotated[str, Field(description="File of its plan.")]
    exit_code: _ExitCode
    step_time_ms: Annotated[float | None, Field(description="Step time of its plan; null if it was not weighed.")]
    gap: Annotated[
        float | None, Field(description="How far that is above its lower bound, as a share; null without a bound.")
    ]
    updated: Annotated[str | None, Field(description="Why a new plan was written; null if none was.")]
    notes: Annotated[tuple[str, ...], Field(description="What has changed without being wrong.")]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class CheckDocument:
    """What became of all specs."""

    format: Annotated[Literal[1], Field(description="Version of this document.")]
    exit_code: _ExitCode
    specs: tuple[CheckedSpec, ...]
    diagnostics: Annotated[
        tuple[Finding, ...],
        Field(description="What is about no spec: why nothing could be run, or (warnings) what was left out."),
    ]


def check_document(outcomes: Sequence[Outcome], apart: Sequence[Diagnostic] = ()) -> CheckDocument:
    """Return the document about some specs, and what was found apart from them."""
    return CheckDocument(1, exit_code(outcomes, apart), tuple(map(_checked, outcomes)), tuple(map(_finding, apart)))


def check_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft-07) of the document."""
    schema = TypeAdapter(CheckDocument).json_schema(ref_template="#/definitions/{model}")
    schema["definitions"] = schema.pop("$defs")
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema, "title": "shardc check"}


def _checked(outcome: Outcome) -> CheckedSpec:
    return CheckedSpec(
        outcome.spec,
        outcome.plan,
        outcome.exit_code,
        outcome.step_time_ms,
        outcome.gap,
        outcome.updated,
        outcome.notes,
        tuple(map(_finding, outcome.findings)),
    )


def _finding(finding: Diagnostic) -> Finding:
    at = finding.location
    place = Place(at.file, at.line, at.column, at.length) if at else None
    return Finding(finding.code, finding.severity, finding.message, finding.help, finding.notes, place)

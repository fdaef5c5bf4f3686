"""`shardc schema`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from shardc.cli.console import echo


class Document(StrEnum):
    """A document that has a JSON Schema."""

    SPEC = "spec"
    PLAN = "plan"
    CHECK = "check"


def schema(document: Annotated[Document, typer.Argument(help="Which document.")]) -> None:
    """Print the JSON Schema (draft-07) of the spec, of the plan, or of what check and validate find."""
    import json

    from shardc.check.document import check_schema
    from shardc.plan import plan_schema
    from shardc.spec import spec_schema

    schema_of = {Document.SPEC: spec_schema, Document.PLAN: plan_schema, Document.CHECK: check_schema}
    echo(json.dumps(schema_of[document](), indent=2))

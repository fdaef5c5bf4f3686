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


def schema(document: Annotated[Document, typer.Argument(help="Which document.")]) -> None:
    """Print the JSON Schema (draft-07) of the spec or of the plan."""
    import json

    from shardc.plan import plan_schema
    from shardc.spec import spec_schema

    echo(json.dumps(spec_schema() if document is Document.SPEC else plan_schema(), indent=2))

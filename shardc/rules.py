"""What every diagnostic code means, why it matters and what to do about it: the entries of rules.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FILE = Path(__file__).with_name("rules.md")
_HEADING = re.compile(r"(?:# (?P<family>.+)|## (?P<code>SH\d{3}): (?P<title>.+))")
_EXAMPLE = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Example:
    """What provokes a diagnostic: a part of a spec ("toml"), or commands beside a model.toml ("console")."""

    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Rule:
    """The entry of one code; text is Markdown, one line a paragraph."""

    code: str
    title: str
    family: str
    meaning: str
    example: Example | None
    fix: str

    @property
    def markdown(self) -> str:
        """All but the heading."""
        example = f"```{self.example.language}\n{self.example.text}\n```" if self.example else None
        return "\n\n".join(filter(None, (self.meaning, example, f"Fix: {self.fix}")))


def read_rules() -> dict[str, Rule]:
    """Return the entries of all codes, in their order."""
    return parse_rules(_FILE.read_text(encoding="utf-8"))


def parse_rules(text: str) -> dict[str, Rule]:
    """Return the entries of a document, by code.

    Args:
        text: `# family` headings, and below each `## CODE: title` with a paragraph that says what it means and why, an
            example as a fenced block or none, and a paragraph that starts with "Fix:".

    Raises:
        ValueError: text that is not like that, or a code that is there twice.
    """
    rules: dict[str, Rule] = {}
    family = None
    for section in re.split(r"^(?=##? [^\n]+\n\n)", text, flags=re.MULTILINE):
        heading, _, body = section.partition("\n")
        if not section:
            continue
        match = _HEADING.fullmatch(heading)
        if match and match["family"] and not body.strip():
            family = match["family"]
        elif match and match["code"] and family and match["code"] not in rules:
            rules[match["code"]] = _rule(match["code"], match["title"], family, body)
        else:
            raise ValueError(f"no entry of a code: {heading}")
    return rules


def _rule(code: str, title: str, family: str, body: str) -> Rule:
    found = _EXAMPLE.search(body)
    example = Example(found["language"], found["text"].rstrip("\n")) if found else None
    prose = body.replace(found[0], "") if found else body
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n{2,}", prose.strip())]
    if len(paragraphs) != 2 or not paragraphs[1].startswith("Fix: "):
        raise ValueError(f"{code}: expected a paragraph of meaning and one that starts with Fix:")
    return Rule(code, title, family, paragraphs[0], example, paragraphs[1].removeprefix("Fix: "))

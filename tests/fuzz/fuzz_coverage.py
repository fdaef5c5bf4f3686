"""Coverage-guided fuzzing of what reads specs and plans; it needs atheris, which has wheels for some Pythons only.

    python tests/fuzz/fuzz_coverage.py spec --seconds 600

Inputs that reached new code are kept below build/fuzz, and the next run starts from them; one that breaks an invariant
ends the run and is kept there as crash-*.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["shardc", "tomli"]):
    import tomli  # noqa: F401

    from shardc.diagnostics import DiagnosticError, concise, render
    from shardc.passes.verify import verify_alone
    from shardc.plan import is_as_written, parse_plan, plan_bytes
    from shardc.spec import load_spec

from fuzz_cases import sound_plans, spec_document, toml_text

_FOLDER = Path(tempfile.mkdtemp(prefix="shardc-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def read_spec(data: bytes) -> None:
    """A spec is read, or refused with diagnostics that can be shown; a valid one has a digest."""
    path = _FOLDER / "model.toml"
    path.write_bytes(data)
    try:
        load_spec(path).digest()
    except DiagnosticError as error:
        _show(error)


def read_plan(data: bytes) -> None:
    """A plan is read, or refused with diagnostics that can be shown; written again it is the same."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    try:
        plan = parse_plan("model.plan.json", text)
    except DiagnosticError as error:
        _show(error)
        return
    is_as_written(text)
    for finding in verify_alone(plan):
        concise(finding)
    written = plan_bytes(plan)
    assert plan_bytes(parse_plan("again", written.decode())) == written


def _show(error: DiagnosticError) -> None:
    assert error.diagnostics
    assert render(error.diagnostics, color=True)


def main() -> None:
    """Fuzz one reader for some seconds."""
    parser = argparse.ArgumentParser(description="Fuzz a reader by coverage.")
    parser.add_argument("reader", choices=["spec", "plan"])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    given = parser.parse_args()
    corpus = given.out / given.reader
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = [plan for _, plan in sound_plans()]
    if given.reader == "spec":
        seeds = [toml_text(spec_document(Random(number).choice)).encode() for number in range(30)]
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    flags = [f"-max_total_time={given.seconds}", f"-seed={given.seed + 1}", "-timeout=20", "-rss_limit_mb=4096"]
    flags += [f"-artifact_prefix={given.out}/", "-max_len=20000", "-print_final_stats=1", str(corpus)]
    atheris.Setup([sys.argv[0], *flags], read_spec if given.reader == "spec" else read_plan)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

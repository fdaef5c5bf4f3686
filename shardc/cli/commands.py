"""All commands, in the order of `shardc --help`, with the examples that end their own help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from shardc import __version__
from shardc.cli import (
    bench,
    check,
    compile,
    devices,
    diff,
    explain,
    export,
    import_,
    init,
    measure,
    migrate,
    profile,
    report,
    rule,
    schema,
    sweep,
    train,
    validate,
)
from shardc.cli.console import echo

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(given: bool) -> None:
    if given:
        echo(f"shardc {__version__}")
        raise typer.Exit


@app.callback()
def _shardc(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Print the version."),
    ] = False,
) -> None:
    """Compile a recommender model's embedding tables and a cluster into a sharding plan that TorchRec runs."""


def _add(command: Callable[..., object], *examples: str, to: typer.Typer = app) -> None:
    """Add a command under its function's name."""
    to.command(epilog="\n  ".join(("\b\nExample:", *examples)))(command)


def _group(name: str, meaning: str) -> typer.Typer:
    """Add a command that has commands of its own; groups come after all other commands."""
    group = typer.Typer(rich_markup_mode=None)
    app.add_typer(group, name=name, help=meaning)
    return group


_add(
    init.init,
    "shardc init --from models.dlrm:build_model -o model.toml --devices-per-host 4",
    "shardc init --from models.dlrm:build_planner_inputs",
)
_add(
    compile.compile,
    "shardc compile model.toml",
    "shardc compile model.toml --base model.plan.json --max-moved 5%",
    "shardc compile model.toml -o - | jq .score.step_time_ms",
    "shardc compile model.toml --set cluster.devices_per_host=16    # what if; nothing is written",
)
_add(validate.validate, "shardc validate examples/*.toml")
_add(check.check, "shardc check examples/*.toml")
_add(
    report.report,
    "shardc report model.plan.json    # writes model.report.html",
    "git show main:model.plan.json > /tmp/old.plan.json && shardc report model.plan.json --base /tmp/old.plan.json",
)
_add(
    explain.explain,
    "shardc explain model.plan.json",
    "shardc explain model.plan.json user_id",
    "shardc explain model.toml --format markdown    # its plan, or why there is none",
)
_add(
    diff.diff,
    "shardc diff HEAD:model.plan.json model.plan.json",
    "shardc diff old.plan.json new.plan.json --format markdown | gh pr comment --body-file -",
)
_add(
    migrate.migrate,
    "shardc migrate old.plan.json new.plan.json",
    "shardc migrate old.plan.json new.plan.json --format csv > moves.csv",
)
_add(
    export.export,
    "shardc export model.plan.json --to hugectr -o shard.json",
    "shardc export model.plan.json --to csv > shards.csv",
)
_add(
    bench.bench,
    "shardc bench model.toml",
    "shardc bench --suite metasyn --strategy shardc --strategy lookup_greedy --picture metasyn.svg",
)
_add(
    sweep.sweep,
    "shardc sweep model.toml --devices 4,8,16",
    "shardc sweep model.toml --device h100-80gb,a100-80gb --hosts 1,2,4 --price h100-80gb=4 --price a100-80gb=2",
    "shardc sweep model.toml --vary model.outputs=fp32,fp16 --picture sweep.svg",
)
_add(
    measure.measure,
    "shardc measure model.plan.json",
    "shardc measure model.plan.json --update profiles/my-gpu    # then: shardc compile model.toml",
)
_add(rule.rule, "shardc rule SH101", "shardc rule --format markdown")
_add(schema.schema, "shardc schema spec > spec.schema.json")
_add(
    profile.profile,
    'shardc profile -o profiles/my-gpu    # then, in a spec: device = "profiles/my-gpu"',
    "torchrun --nproc-per-node 8 -m shardc profile -o profiles/my-gpu --collectives",
)
_add(devices.devices, "shardc devices")

_import = _group("import", "Make a spec of something else.")
_add(import_.dlrm, "shardc import dlrm fbgemm_t856_bs65536_0.pt.gz -o dlrm.toml --hosts 2", to=_import)

_train = _group("train", "Train what shardc ships weights of.")
_add(train.policy, "shardc train policy -o policy.safetensors --profile h100-80gb --steps 500", to=_train)

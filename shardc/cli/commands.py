"""All commands, in the order of `shardc --help`, with the examples that end their own help."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from shardc import __version__
from shardc.cli.console import echo

COMMANDS: dict[str, tuple[str, ...]] = {
    "init": (
        "shardc init --from models.dlrm:build_model -o model.toml --devices-per-host 4",
        "shardc init --from models.dlrm:build_planner_inputs",
    ),
    "compile": (
        "shardc compile model.toml",
        "shardc compile model.toml --base model.plan.json --max-moved 5%",
        "shardc compile model.toml -o - | jq .score.step_time_ms",
        "shardc compile model.toml --set cluster.devices_per_host=16    # what if; nothing is written",
    ),
    "validate": ("shardc validate examples", "shardc validate model.toml"),
    "check": ("shardc check examples/*.toml",),
    "report": (
        "shardc report model.plan.json    # writes model.report.html",
        "git show main:model.plan.json > /tmp/old.plan.json && shardc report model.plan.json --base /tmp/old.plan.json",
    ),
    "explain": (
        "shardc explain model.plan.json",
        "shardc explain model.plan.json user_id",
        "shardc explain model.toml --format markdown    # its plan, or why there is none",
    ),
    "diff": (
        "shardc diff HEAD:model.plan.json model.plan.json",
        "shardc diff old.plan.json new.plan.json --format markdown | gh pr comment --body-file -",
    ),
    "migrate": (
        "shardc migrate old.plan.json new.plan.json",
        "shardc migrate old.plan.json new.plan.json --format csv > moves.csv",
    ),
    "export": (
        "shardc export model.plan.json --to hugectr -o shard.json",
        "shardc export model.plan.json --to csv > shards.csv",
    ),
    "bench": (
        "shardc bench model.toml",
        "shardc bench --suite metasyn --strategy shardc --strategy lookup_greedy --picture metasyn.svg",
    ),
    "sweep": (
        "shardc sweep model.toml --devices 4,8,16",
        "shardc sweep model.toml --device h100-80gb,a100-80gb --hosts 1,2,4 --price h100-80gb=4 --price a100-80gb=2",
        "shardc sweep model.toml --vary model.outputs=fp32,fp16 --picture sweep.svg",
    ),
    "measure": (
        "shardc measure model.plan.json",
        "shardc measure model.plan.json --update profiles/my-gpu    # then: shardc compile model.toml",
    ),
    "rule": ("shardc rule SH101", "shardc rule --format markdown"),
    "schema": ("shardc schema spec > spec.schema.json",),
    "profile": (
        'shardc profile -o profiles/my-gpu    # then, in a spec: device = "profiles/my-gpu"',
        "torchrun --nproc-per-node 8 -m shardc profile -o profiles/my-gpu --collectives",
    ),
    "devices": ("shardc devices",),
}
"""Examples of each command, which is the function of its name in the module of its name."""

_GROUPS: dict[str, tuple[str, str, dict[str, tuple[str, ...]]]] = {
    "import": (
        "import_",
        "Make a spec of something else.",
        {"dlrm": ("shardc import dlrm fbgemm_t856_bs65536_0.pt.gz -o dlrm.toml --hosts 2",)},
    ),
    "train": (
        "train",
        "Train what shardc ships weights of.",
        {"policy": ("shardc train policy -o policy.safetensors --profile h100-80gb --steps 500",)},
    ),
}
"""Commands that have commands of their own; for each its module, what it does, and examples of its commands."""


def app_for(arguments: Sequence[str]) -> typer.Typer:
    """The command line with the command that the arguments begin with, or with all of them if that is none.

    To set up all commands takes as long as some of them run.
    """
    first = arguments[0] if arguments else ""
    wanted = {first} if first in COMMANDS or first in _GROUPS else {*COMMANDS, *_GROUPS}
    app = typer.Typer(
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_shardc)
    for name, examples in COMMANDS.items():
        if name in wanted:
            _add(app, name, name, examples)
    for name, (module, meaning, commands) in _GROUPS.items():
        if name in wanted:
            group = typer.Typer(rich_markup_mode=None, help=meaning)
            app.add_typer(group, name=name)
            for command, examples in commands.items():
                _add(group, module, command, examples)
    return app


def _add(app: typer.Typer, module: str, name: str, examples: Sequence[str]) -> None:
    command = getattr(import_module(f"shardc.cli.{module}"), name)
    app.command(epilog="\n  ".join(("\b\nExample:", *examples)))(command)


def _version(given: bool) -> None:
    if given:
        echo(f"shardc {__version__}")
        raise typer.Exit


def _shardc(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Print the version."),
    ] = False,
) -> None:
    """Compile a recommender model's embedding tables and a cluster into a sharding plan that TorchRec runs."""

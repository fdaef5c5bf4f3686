"""SH312: a plan was changed after it was compiled."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from shardc.check.context import Context
from shardc.diagnostics import Diagnostic
from shardc.plan import Plan, is_as_written


def edited(context: Context) -> Iterator[Diagnostic]:
    """Yield a finding if the plan's document is not the one that its digest is of."""
    if is_as_written(context.text) is False:
        message = f"{context.path} is not what shardc wrote: it was edited, or merged, after it was compiled"
        yield Diagnostic("SH312", message, help=accepting(context), notes=tuple(_moved_by_hand(context)))


def accepting(context: Context) -> str:
    """The advice how to drop what was edited, or to keep it."""
    spec, plan = shlex.quote(context.loaded.path or ""), shlex.quote(context.path)
    keep = f"shardc compile {spec} --base {plan} --max-moved 0"
    return f"{context.recompile}; or keep the placement with figures that are true of it: {keep}"


def _moved_by_hand(context: Context) -> Iterator[str]:
    """Yield a note if the memory that the plan states is that of one table on another device."""
    if context.frozen:
        return
    true = {device.rank: device.memory_bytes for device in context.figures.score.devices}
    stated = {device.rank: device.memory_bytes for device in context.plan.score.devices}
    more = {rank: true[rank] - stated[rank] for rank in true.keys() & stated.keys() if true[rank] != stated[rank]}
    if len(more) != 2 or sum(more.values()) != 0:
        return
    (source, _), (target, bytes) = sorted(more.items(), key=lambda item: item[1])
    from shardc.passes.verify import shard_memory  # few plans are edited

    shards = shard_memory(context.plan, context.loaded)
    for table, rank, size in zip(shards.table, shards.rank.tolist(), shards.bytes[0].tolist(), strict=True):
        if (rank, size) == (target, bytes):
            yield f'table "{table}" is on device {target}; by the memory that is stated it was on device {source}'
            return


def unsigned(plan: Plan) -> Iterator[str]:
    """Yield a note if the plan has no digest: the first versions wrote none, and an edit may have removed it."""
    if plan.digest is None:
        yield "the plan has no digest, so it cannot be told whether it was edited: shardc check --update adds one"

"""restore: a plan document becomes a placement of its problem again, the reverse of emit, or as much as can be."""

from __future__ import annotations

import numpy as np

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.moves import tables_of
from shardc.plan import Plan, TablePlan
from shardc.problem import Placement, Problem, Site, distinct

_STATED = 1e-5  # relative: plans state six digits


def placement_of(plan: Plan, problem: Problem) -> Placement:
    """The placement that a plan of the problem's tables writes down.

    Raises:
        DiagnosticError: SH308 for every table that is sharded in a way that is no option of the problem.
    """
    tables = {name: placed for module in plan.plan.values() for name, placed in module.items()}
    options, places, faults = [], [], []
    for block, members in enumerate(problem.blocks):
        name = problem.tables[members[0]].name
        placed = tables[name]
        cached = [tables[problem.tables[t].name].cached for t in members]
        alike = (o for o in problem.options_of(block) if np.allclose(problem.cached_of(o), cached, rtol=_STATED))
        found = ((o, _places(placed, problem, o)) for o in alike)
        option, of_units = next(((o, p) for o, p in found if p is not None), (None, None))
        if option is None or of_units is None:
            how = f"{placed.sharding_type} in {len(placed.shards)} {'cached ' * (placed.cached < 1.0)}pieces"
            message = f'table "{name}": {how} is no option of the spec'
            faults.append(Diagnostic("SH308", message, help="compile the spec again"))
        else:
            options.append(option)
            places.append(of_units)
    if faults:
        raise DiagnosticError(*faults)
    return Placement(tuple(options), tuple(places))


def ways_of(plan: Plan, problem: Problem) -> tuple[tuple[int, tuple[int, ...]] | None, ...]:
    """For each block of a problem, the option and the places by which a plan of maybe other tables and devices has it.

    Rows, columns and cached shares may have changed: what counts is the sharding type, the number of pieces, their
    ranks, and whether they are cached. Places are in the order of columns. None for a block that is new, or that the
    problem has no such option for.
    """
    tables = tables_of(plan)
    return tuple(
        _way([tables.get(problem.tables[table].name) for table in members], problem, block)
        for block, members in enumerate(problem.blocks)
    )


def _way(members: list[TablePlan | None], problem: Problem, block: int) -> tuple[int, tuple[int, ...]] | None:
    placed = [table for table in members if table is not None]
    if len(placed) < len(members) or any(table.ranks != placed[0].ranks for table in placed):
        return None
    first = placed[0]
    for option in problem.options_of(block):
        size = int(problem.site_size[problem.option_site[option]])
        cached = [table.cached < 1.0 for table in placed]
        if (
            any(table.sharding_type != problem.option_type[option] for table in placed)
            or [share < 1.0 for share in problem.cached_of(option)] != cached
            or (problem.option_site[option] != Site.CLUSTER and problem.option_units[option] * size != len(first.ranks))
        ):
            continue
        widest_first = sorted(first.shards[::size], key=lambda shard: -shard.shard_sizes[1])
        places = tuple(shard.rank // size for shard in widest_first)
        if problem.option_site[option] == Site.CLUSTER:
            places = (0,)
        devices = np.concatenate([np.arange(place * size, (place + 1) * size) for place in places])
        stays = problem.option_site[option] == Site.CLUSTER or set(devices.tolist()) == set(first.ranks)
        if stays and devices.max() < problem.cluster.devices and problem.allowed[block, devices].all():
            hosts = distinct(devices // problem.cluster.devices_per_host)
            if len(hosts) == 1 or not problem.option_one_host[option]:
                return option, places
    return None


def _places(placed: TablePlan, problem: Problem, option: int) -> tuple[int, ...] | None:
    """Where the units of an option are if a table is sharded in this way; None if it is not."""
    if placed.sharding_type != problem.option_type[option]:
        return None
    if problem.option_site[option] == Site.CLUSTER:
        return (0,)
    size = int(problem.site_size[problem.option_site[option]])
    first = placed.shards[::size]
    units = problem.units_of(option)
    if len(problem.unit_shards[units[0]]) > 1:  # a group, which is placed whole
        return tuple(shard.rank for shard in first)
    widths = [int(problem.shards.dim[problem.unit_shards[unit][0]]) for unit in units]
    # Units come from wide to narrow, and among equals by their place.
    ordered = sorted((-shard.shard_sizes[1], shard.rank // size) for shard in first)
    return tuple(place for _, place in ordered) if [-width for width, _ in ordered] == widths else None

"""restore: a plan document becomes a placement of its problem again, the reverse of emit."""

from __future__ import annotations

import numpy as np

from shardc.diagnostics import Diagnostic, DiagnosticError
from shardc.plan import Plan, TablePlan
from shardc.problem import Placement, Problem, Site

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

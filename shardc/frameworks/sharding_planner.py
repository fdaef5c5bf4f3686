"""A planner in place of TorchRec's own: `ShardcPlanner(topology).collective_plan(model, sharders, pg)`."""
# ruff: noqa: TID253 (the planner is one of TorchRec's)

from __future__ import annotations

import logging
import reprlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from torch import distributed, nn
from torchrec.distributed.planner import ParameterConstraints, Topology
from torchrec.distributed.planner.constants import BATCH_SIZE
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import PlannerError, StorageReservation
from torchrec.distributed.sharding_plan import get_default_sharders
from torchrec.distributed.types import ModuleSharder, ShardingPlan, ShardingPlanner

from shardc.cost.model import CostModel
from shardc.cost.torchrec import VERSION, torchrec_cost
from shardc.diagnostics import Diagnostic, DiagnosticError, concise
from shardc.frameworks.torchrec import other_ranks, placement_on, sharding_plan
from shardc.frameworks.torchrec_model import require_model, require_sharders, tables_of
from shardc.frameworks.torchrec_problem import Asked, problem_of
from shardc.hardware import Hardware, load_hardware
from shardc.passes.emit import table_plans
from shardc.passes.place import EVALUATIONS, Choice, place
from shardc.passes.profile import profile
from shardc.passes.verify import shard_faults
from shardc.pipeline import find_policy, is_cost_model, valid_seed
from shardc.plan import TablePlan

_RESERVED = 0.15  # what TorchRec's planner reserves unless told otherwise, beside dense parameters and inputs

_MOST_SAMPLES = 2**31  # of a step, as in a spec

logger = logging.getLogger(__name__)


class ShardcPlanner(ShardingPlanner):  # type: ignore[misc]
    """Plans a model's embedding tables as TorchRec's `EmbeddingShardingPlanner` does, from what that is given.

    Tables of all the model's collections compete for the devices.

    Attributes:
        choice: the outcome of the last `plan`: what it costs, what every strategy reached, and the lower bound.
        warnings: how far to trust it.
    """

    def __init__(
        self,
        topology: Topology,
        batch_size: int | None = None,
        constraints: Mapping[str, ParameterConstraints] | None = None,
        storage_reservation: StorageReservation | None = None,
        cost: str | CostModel = "torchrec",
        effort: str = "balanced",
        seed: int = 0,
    ) -> None:
        """Say what to plan for.

        Args:
            topology: the devices.
            batch_size: samples of a device; None for TorchRec's default (512).
            constraints: of tables, by name.
            storage_reservation: what is kept of each device's storage; None for TorchRec's default, a heuristic.
            cost: "torchrec" for TorchRec's own estimates; a hardware profile's name or folder; or a cost model.
            effort: how long to search: fast, balanced or thorough.
            seed: of every random choice.

        Raises:
            DiagnosticError: SH103 and SH104 with every argument of another type or out of range, SH107 for an unknown
                profile, SH601 and SH602 for a damaged one.
        """
        if findings := list(_wrong_arguments(topology, batch_size, constraints, storage_reservation, cost, effort)):
            raise DiagnosticError(*findings)
        self._seed = valid_seed(seed)
        self._topology = topology
        self._batch_size = BATCH_SIZE if batch_size is None else batch_size
        self._constraints = constraints or {}
        self._reservation = storage_reservation
        self._cost = cost
        self._hardware: Hardware | None = None
        if isinstance(cost, str) and cost != "torchrec":
            self._hardware = load_hardware(cost)
        self._effort = effort
        self.choice: Choice | None = None
        self.warnings: tuple[Diagnostic, ...] = ()

    def plan(self, module: nn.Module, sharders: Sequence[ModuleSharder[Any]] | None = None) -> ShardingPlan:
        """Plan a model on this process alone.

        Args:
            module: the model; its tables may be on the meta device.
            sharders: what will shard it; None for TorchRec's default ones.

        Raises:
            DiagnosticError: SH103 for another thing than a model or sharders; SH611 with everything that cannot be
                honoured; SH201 to SH203 when the tables do not fit.
        """
        require_model(module)
        require_sharders(sharders)
        sharders = get_default_sharders() if sharders is None else list(sharders)
        asked = problem_of(
            tables_of(module, sharders),
            self._topology,
            self._constraints,
            self._batch_size,
            reserve=lambda: self._reserved(module, sharders),
            hardware=self._hardware,
            estimates=self._cost == "torchrec",
        )
        cost, found = self._cost_of(asked)
        policy, missing = find_policy(asked.loaded, [self._hardware] if self._hardware else [])
        self.choice = place(asked.problem, cost, policy=policy, effort=self._effort, seed=self._seed)
        self.warnings = (*asked.warnings, *found, *missing)
        for warning in self.warnings:
            logger.warning(concise(warning))
        return self._sharding_plan(asked, self.choice)

    def collective_plan(
        self,
        module: nn.Module,
        sharders: Sequence[ModuleSharder[Any]] | None = None,
        pg: distributed.ProcessGroup | None = None,
    ) -> ShardingPlan:
        """Plan on the group's first rank, for all of its ranks.

        Args:
            module: as of `plan`.
            sharders: as of `plan`.
            pg: the ranks; None for all.

        Raises:
            DiagnosticError: on every rank what `plan` raises on the first; SH605 when there is no process group, or
                not one of the topology's ranks and hosts (torchrun says which ranks are of one host); SH901 on the
                other ranks where the first one fails otherwise.
        """
        if not distributed.is_initialized():
            message = "there is no process group to plan with"
            raise DiagnosticError(Diagnostic("SH605", message, help="use `plan`, or start one"), exit_code=2)
        group = pg or distributed.distributed_c10d._get_default_group()
        outcome: list[ShardingPlan | DiagnosticError | None] = [None]
        if group.rank() != 0:
            distributed.broadcast_object_list(outcome, group_src=0, group=group)
            if isinstance(outcome[0], DiagnosticError):
                raise outcome[0]
            return outcome[0]
        try:
            where = self._topology
            if found := other_ranks("the topology", where.world_size, group.size(), where.intra_group_size):
                raise DiagnosticError(found, exit_code=2)
            outcome = [self.plan(module, sharders)]
        except BaseException as error:
            # The others wait for what became of it, whatever that is.
            failed = Diagnostic("SH901", f"planning failed on the first rank: {type(error).__name__}: {error}")
            outcome = [error if isinstance(error, DiagnosticError) else DiagnosticError(failed, exit_code=2)]
            raise
        finally:
            distributed.broadcast_object_list(outcome, group_src=0, group=group)
        return outcome[0]

    def _reserved(self, module: nn.Module, sharders: list[ModuleSharder[Any]]) -> Topology:
        """The topology, with the storage that tables may take."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the default: TorchRec's planner gives it as well
            reservation = self._reservation or HeuristicalStorageReservation(percentage=_RESERVED)
        try:
            return reservation.reserve(self._topology, self._batch_size, module, sharders, dict(self._constraints))
        except PlannerError as error:
            raise DiagnosticError(Diagnostic("SH202", f"nothing is left for tables: {error}")) from error

    def _cost_of(self, asked: Asked) -> tuple[CostModel, tuple[Diagnostic, ...]]:
        """The cost model that placements are judged by, and how far to trust it."""
        if self._hardware is not None:
            profiled = profile(asked.problem, [self._hardware], asked.loaded)
            return profiled.cost, profiled.warnings
        if not isinstance(self._cost, str):
            return self._cost, ()
        found: tuple[Diagnostic, ...] = ()
        if (installed := version("torchrec")) != VERSION:
            message = f"costs are estimates of TorchRec {VERSION}, {installed} is installed"
            found = (Diagnostic("SH505", message, severity="warning"),)
        return torchrec_cost(asked.problem, asked.machine, asked.inputs), found

    def _sharding_plan(self, asked: Asked, choice: Choice) -> ShardingPlan:
        """A choice as TorchRec has it, module by module, checked by itself."""
        local, cluster = self._topology.local_world_size, asked.problem.cluster
        tables: dict[str, dict[str, TablePlan]] = {}
        faults = []
        for label, placed in table_plans(choice).items():
            table = asked.tables[label]
            faults += [f"{table.label}: {fault}" for _, fault in shard_faults(placed, cluster)]
            tables.setdefault(table.path, {})[table.name] = placed.model_copy(update=dict(asked.members[label]))
        if faults:
            raise DiagnosticError(*(Diagnostic("SH901", fault) for fault in faults), exit_code=2)

        return sharding_plan(tables, placement_on("cpu" if cluster.device_type == "cpu" else "cuda", local))


def _wrong_arguments(
    topology: Any, batch_size: Any, constraints: Any, reservation: Any, cost: Any, effort: Any
) -> Iterator[Diagnostic]:
    """Yield the arguments of a planner that cannot be meant."""
    if not isinstance(topology, Topology):
        yield _expected("topology as a Topology", topology)
    if batch_size is not None and (not isinstance(batch_size, int) or isinstance(batch_size, bool)):
        yield _expected("batch_size as a positive integer", batch_size)
    elif batch_size is not None and batch_size < 1:
        yield Diagnostic("SH104", f"expected batch_size as a positive integer, found {batch_size}")
    elif isinstance(topology, Topology):
        most = _MOST_SAMPLES // topology.world_size
        if (BATCH_SIZE if batch_size is None else batch_size) > most:
            message = f"expected a batch_size of at most {most} on {topology.world_size} ranks, found {batch_size}"
            yield Diagnostic("SH104", message)
    if constraints is not None and not isinstance(constraints, Mapping):
        yield _expected("constraints as a mapping of table names to ParameterConstraints", constraints)
    elif constraints is not None:
        for name, limits in constraints.items():
            if not isinstance(name, str):
                yield _expected("names of tables in constraints", name)
            elif not isinstance(limits, ParameterConstraints):
                yield _expected(f'constraints of table "{name}" as ParameterConstraints', limits)
    if reservation is not None and not isinstance(reservation, StorageReservation):
        yield _expected("storage_reservation as one of TorchRec's", reservation)
    if not isinstance(cost, str) and not is_cost_model(cost):
        yield _expected("cost as a name, or a cost model with encode and score", cost)
    if effort not in list(EVALUATIONS):
        yield Diagnostic("SH104", f'expected effort as one of {", ".join(EVALUATIONS)}, found "{effort}"')


def _expected(what: str, found: Any) -> Diagnostic:
    return Diagnostic("SH103", f"expected {what}, found {reprlib.repr(found)}")

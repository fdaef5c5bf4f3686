"""What is said about the placement policies, measured on this machine: quality, transfer, search, real milliseconds.

    python tests/benchmarks/bench_policy.py [quality] [transfer] [tight] [search] [measured] [ablation]

All tables that are placed here are of the half of the pool that no policy was trained on, unless a line says otherwise.
`cpu-epyc` is a measured profile; `h100-80gb` is a roofline over a data sheet. Without arguments all but the ablation.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shardc import bench, pipeline  # noqa: E402
from shardc.cost.bound import lower_bound  # noqa: E402
from shardc.judge import Judge  # noqa: E402
from shardc.passes.lower import lower  # noqa: E402
from shardc.passes.profile import profile  # noqa: E402
from shardc.placers.episode import offered_options  # noqa: E402
from shardc.placers.greedy import cost_greedy  # noqa: E402
from shardc.placers.local_search import improve  # noqa: E402
from shardc.placers.policy import load_policy, place_by_policy  # noqa: E402
from shardc.problem import Placement  # noqa: E402
from shardc.spec import SHARDING_TYPES, LoadedSpec, parse_spec  # noqa: E402
from shardc.suites import TablePool, metasyn_split, metasyn_task, problems  # noqa: E402

DEVICES = ("cpu-epyc", "h100-80gb")
CHOICES = {"table-wise": SHARDING_TYPES[:1], "all sharding types": SHARDING_TYPES}
PAPERS = ("random", "size_greedy", "dim_greedy", "lookup_greedy", "size_lookup_greedy")
POLICIES = ("cost_greedy", "autoshard", "dreamshard", "rl_policy", "rl_policy_16")
SIZES = ((20, 4), (40, 4), (80, 4), (40, 8), (80, 8), (200, 8), (100, 16), (200, 16), (400, 40), (800, 80), (1000, 128))
UNSEEN = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TASKS = 20
EVALUATIONS = 60_000
MEASURED_TASKS, MEASURED_TABLES, MEASURED_DEVICES, MEASURED_BATCH = 5, 40, 4, 1024
MEASURED_ROWS = 1 / 16  # of a table's rows: sets of these tables are of sizes that the CPU's profile was measured with
MEASURED_OPTIMIZER = "sgd"  # row-wise Adagrad in fp32 took up to 5 times as long as when the profile was made
ABLATION_STEPS, ABLATION_TASKS = 600, 20


def main(sections: Sequence[str]) -> int:
    """Print the sections that are named, or all but the ablation."""
    known = {
        "quality": quality,
        "transfer": transfer,
        "tight": tight,
        "search": search,
        "measured": measured,
        "ablation": ablation,
    }
    if unknown := set(sections) - set(known):
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return 2
    print(bench.machine(), end="\n\n")
    for name in sections or list(known)[:-1]:
        known[name]()
    return 0


def spec(
    device: str,
    tables: int,
    devices: int,
    seed: Sequence[int],
    pool: TablePool,
    *,
    batch: int | None = None,
    types: Sequence[str] = SHARDING_TYPES[:1],
) -> Any:
    """A task of AutoShard's kind on a device of ours; the CPU has a smaller batch, and memory enough."""
    drawn = metasyn_task("task", np.random.default_rng(seed), tables, devices, types, pool)
    drawn["cluster"] |= {"device": device, "memory": "1TB"} if device == "cpu-epyc" else {"device": device}
    drawn["model"]["global_batch"] = batch or (8192 if device == "cpu-epyc" else 65_536)
    return drawn


def compared(title: str, specs: Sequence[Any], strategies: Sequence[str]) -> bench.Comparison:
    loaded = [(str(number), parse_spec(one)) for number, one in enumerate(specs)]
    return bench.compare(title, loaded, strategies, effort="fast")


def judged(loaded: LoadedSpec) -> Judge:
    """The judge of a spec."""
    hardware = pipeline.devices_of(loaded)
    problem = lower(loaded, hardware)
    return Judge(problem, profile(problem, hardware, loaded).cost)


def attainable(judge: Judge) -> float:
    """The best degree of balance that the costliest table leaves, table-wise: it keeps a device to itself."""
    problem, cost = judge.problem, judge.cost
    whole = judge.latents[0, problem.first_unit[problem.first_option]]
    alone = cost.passes(whole).sum(axis=-1)
    others = (whole.sum(axis=0) - whole[alone.argmax()]) / max(problem.cluster.devices - 1, 1)
    return min(1.0, float(cost.passes(others).sum() / alone.max()))


def quality() -> None:
    """Every strategy on tasks of the papers' main setting, and the same tables free to be sharded in any way."""
    strategies = (*PAPERS, *POLICIES, "shardc")
    for device in DEVICES:
        for title, types in CHOICES.items():
            specs = [spec(device, 80, 8, [1, number], metasyn_split("test"), types=types) for number in range(TASKS)]
            found = compared(device, specs, strategies)
            table_wise = types == CHOICES["table-wise"]
            limits = [attainable(judged(parse_spec(one))) if table_wise else 1.0 for one in specs]
            print(f"{device}: {TASKS} tasks of 80 tables on 8 devices, {title}; ratio to cost_greedy, means")
            print(f"  {'strategy':<20}{'ratio':>8}{'gap':>8}{'balance':>9}{'of attainable':>15}{'planning':>12}")
            for summary in found.summaries:
                steps = [r.step_ms[summary.strategy] / r.step_ms["cost_greedy"] for r in found.results]
                balances = [
                    run.balance or 0.0 for r in found.results for run in r.runs if run.strategy == summary.strategy
                ]
                share = mean(balance / limit for balance, limit in zip(balances, limits, strict=True))
                gap = summary.gap.mean if summary.gap else 0.0
                seconds = summary.seconds.mean if summary.seconds else 0.0
                print(
                    f"  {summary.strategy:<20}{mean(steps):8.3f}{gap:8.1%}{mean(balances):9.3f}{share:15.3f}"
                    f"{1e3 * seconds:9.1f} ms"
                )
            wins = mean(r.step_ms["rl_policy"] < min(r.step_ms[name] for name in PAPERS) for r in found.results)
            print(
                f"  attainable balance {mean(limits):.3f}; rl_policy beats every heuristic of the papers: {wins:.0%}\n"
            )


def transfer() -> None:
    """Trained on up to 100 tables and 16 devices; used on other sizes, and on tables seen or not (figures 10, 11)."""
    strategies = ("random", "lookup_greedy", *POLICIES)
    for device in DEVICES:
        print(f"{device}: sizes; step time over random's, and balance over what is attainable")
        print(f"  {'tables/devices':<16}" + "".join(f"{name:>22}" for name in strategies[1:]))
        for tables, devices in SIZES:
            count = 5 if tables <= 200 else 2
            specs = [spec(device, tables, devices, [2, tables, n], metasyn_split("test")) for n in range(count)]
            print(f"  {f'{tables}/{devices}':<16}" + _transferred(specs, strategies))
        print(f"{device}: share of unseen tables, 80 tables on 8 devices; the same figures")
        for share in UNSEEN:
            pool = _mixed_pool(share)
            specs = [spec(device, 80, 8, [3, number], pool) for number in range(10)]
            print(f"  {share:<16.1f}" + _transferred(specs, strategies))
        print()


def _transferred(specs: Sequence[Any], strategies: Sequence[str]) -> str:
    found = compared("", specs, strategies)
    limits = [attainable(judged(parse_spec(one))) for one in specs]
    cells = []
    for name in strategies[1:]:
        ratio = mean(r.step_ms[name] / r.step_ms["random"] for r in found.results)
        runs = [next(run for run in r.runs if run.strategy == name) for r in found.results]
        share = mean((run.balance or 0.0) / limit for run, limit in zip(runs, limits, strict=True))
        cells.append(f"{ratio:.2f} {share:.2f} {mean(run.seconds for run in runs):6.3f} s")
    return "".join(f"{cell:>22}" for cell in cells)


def _mixed_pool(unseen: float) -> TablePool:
    """160 tables, of which a share is of the half that no policy was trained on."""
    count = round(160 * unseen)
    seen, new = metasyn_split("train").part(slice(0, 160 - count)), metasyn_split("test").part(slice(0, count))
    return TablePool(*(np.concatenate([getattr(p, name) for p in (seen, new)]) for name in ("rows", "pooling", "bins")))


def tight() -> None:
    """Problems that are known to have a placement, with 95 to 99.5 % of the memory filled."""
    found = compared("tight", problems("tight"), (*PAPERS, *POLICIES, "shardc"))
    print("tight: problems placed of 20, and how the others failed")
    for summary in found.summaries:
        failures = ", ".join(f"{count} {failure}" for failure, count in summary.failures.items())
        print(f"  {summary.strategy:<20}{summary.placed:>4}   {failures}")
    print()


def search() -> None:
    """Local search from the policy's placement beside the same from cost-greedy's."""
    policy = load_policy(pipeline.POLICY)
    for device in DEVICES:
        for title, types in CHOICES.items():
            halves, starts, ends, needed = [], [], [], []
            for number in range(TASKS):
                judge = judged(parse_spec(spec(device, 80, 8, [4, number], metasyn_split("test"), types=types)))
                bound = lower_bound(judge.problem, judge.cost, judge.latents)
                usual = cost_greedy(judge, [int(option) for option in judge.problem.first_option])
                (learned,) = place_by_policy(judge, [offered_options(judge.problem)], policy)
                runs = [list(_progress(judge, start, bound)) for start in (usual, learned)]
                best = runs[0][-1][1]
                at = next((done for done, ms in runs[0] if ms <= best * (1 + 1e-4)), 1.0)
                reached = next((done for done, ms in runs[1] if ms <= best * (1 + 1e-4)), np.inf)
                halves.append(reached <= at / 2)
                needed.append(min(reached, 1.0) / max(at, 1e-3))
                starts.append(runs[1][0][1] / runs[0][0][1])
                ends.append(runs[1][-1][1] / best)
            print(
                f"search, {device}, {title}: as good as from cost-greedy with half the scoring in {mean(halves):.0%} "
                f"of {TASKS} tasks; candidates, median ratio {np.median(needed):.2f}; start {mean(starts):.3f}, "
                f"end {mean(ends):.4f} of cost-greedy's"
            )
    print()


def _progress(judge: Judge, start: Placement | None, bound: Any) -> Iterator[tuple[float, float]]:
    """Share of the candidates scored, and the best step time until then."""
    assert start is not None
    seen = [(0.0, judge.judge(start).step_time_ms)]

    def watch(done: float, step_ms: float) -> bool:
        seen.append((done, step_ms))
        return True

    enough = bound.step_time_ms * (1 + 1e-4)
    found = improve(
        judge, start, evaluations=EVALUATIONS, seed=0, targets=bound.phase_ms, enough_ms=enough, watch=watch
    )
    yield from seen
    yield 1.0, judge.judge(found).step_time_ms


def measured() -> None:
    """Plans of every strategy, run device by device with FBGEMM on this machine's CPU."""
    from shardc.measure.plan import measure_devices

    strategies = ("random", "lookup_greedy", *POLICIES, "shardc")
    print(
        f"measured: {MEASURED_TASKS} tasks of {MEASURED_TABLES} tables with {MEASURED_ROWS:.1%} of their rows on "
        f"{MEASURED_DEVICES} CPU devices, batch {MEASURED_BATCH}, {MEASURED_OPTIMIZER}; "
        "ms of the slowest device, balance, ms over random's"
    )
    head = "".join(
        f"{f'{what}, {how}':>21}" for what in ("ms", "balance", "ratio") for how in ("predicted", "measured")
    )
    print(f"  {'strategy':<20}{head}")
    found: dict[str, list[list[float]]] = {name: [] for name in strategies}
    disturbed = []
    for number in range(MEASURED_TASKS):
        drawn = spec(
            "cpu-epyc",
            MEASURED_TABLES,
            MEASURED_DEVICES,
            [5, number],
            metasyn_split("test"),
            batch=MEASURED_BATCH,
        )
        drawn["model"]["optimizer"] = MEASURED_OPTIMIZER
        for table in drawn["table"]:
            table["rows"] = max(1, round(table["rows"] * MEASURED_ROWS))
        loaded = parse_spec(drawn)
        hardware = pipeline.device_of(loaded)
        judge = judged(loaded)
        policy, _ = pipeline.find_policy(loaded, [hardware])
        case = bench.Case(loaded, judge.problem, judge.cost, policy, "fast", 0)
        for name in strategies:
            placement = bench.STRATEGIES[name].answer(case).placement
            assert placement is not None
            predicted = judge.cost.passes(judge.judge(placement).z)
            run = measure_devices(judge.problem, judge.problem.held(placement), hardware)
            disturbed.append(run.disturbance)
            ms, balances = zip(*[(of.max(axis=0).sum(), _balance(of)) for of in (predicted, run.ms)], strict=True)
            random_ms = found["random"][number][:2] if name != "random" else ms
            found[name].append([*ms, *balances, *np.divide(ms, random_ms)])
    for name, rows in found.items():
        print(f"  {name:<20}" + "".join(f"{value:21.3f}" for value in np.mean(rows, axis=0)))
    print(
        "  (forward of the slowest device plus backward of the slowest; communication is not measured; the reference "
        f"set took {np.median(disturbed):.2f} times as long as when the profile was made)\n"
    )


def _balance(ms: Any) -> float:
    total = ms.sum(axis=-1)
    return float(total.min() / total.max())


def ablation() -> None:
    """AutoShard's Table 2: its policy trained on a cost model that lacks something; balance by the whole one."""
    from shardc.learn import train_policy as training
    from shardc.placers import peers
    from shardc.placers.episode import FEATURES, Task, play

    how, cost_features = training.kinds()["autoshard"], [FEATURES.index(f) for f in ("total_before",)]

    def without(tasks: Sequence[Any], what: str) -> list[Any]:
        """Tasks as a cost model sees them that knows nothing of pooling, or of the distribution of accesses."""
        seen = []
        for task in tasks:
            problem = task.judge.problem
            shards = problem.shards
            if what == "pooling":
                shards = replace(shards, pooling=np.full_like(shards.pooling, 15.8), unique=shards.unique * 0 + 1e5)
            if what == "distribution":
                shards = replace(shards, bins=np.full_like(shards.bins, 1 / 17), unique=shards.lookups / 4)
            judge = Judge(replace(problem, shards=shards), task.judge.cost)
            seen.append(Task.of(judge, [[int(option)] for option in problem.first_option]))
        return seen

    def tasks(which: int, number: int) -> list[Any]:
        half = "train" if which == 0 else "test"
        drawn = [spec("h100-80gb", 80, 8, [6, which, number, i], metasyn_split(half)) for i in range(4)]
        judges = [judged(parse_spec(one)) for one in drawn]
        return [Task.of(judge, [[int(o)] for o in judge.problem.first_option]) for judge in judges]

    train, test = [tasks(0, n) for n in range(12)], [tasks(1, n) for n in range(ABLATION_TASKS // 4)]
    print(
        f"ablation: AutoShard's policy, {ABLATION_STEPS} steps, 80 tables on 8 × h100-80gb, {ABLATION_TASKS} test tasks"
    )
    for what in ("nothing", "cost", "pooling", "distribution"):
        start = time.process_time()
        weights = how.initial(np.random.default_rng(0))
        memory = how.memory(sum(array.size for array in weights.values()))
        state = training._State(0, weights, memory, weights, np.inf, [])
        settings = training.Settings("autoshard", (), (), ABLATION_STEPS, 0, 1, "")
        kind = replace(how, learn=partial(training.reinforce, partial(_blinded, peers, cost_features, what), 2e-3))
        kind = replace(kind, scorer=lambda w, what=what: _Blind(w, cost_features if what == "cost" else []))
        games = [without(group, what) for group in train]
        for state.step in range(1, ABLATION_STEPS + 1):
            kind.learn(kind, state, [games[state.step % len(games)]], settings, training._Ranks(0, 1))
        balances = []
        for group in test:
            played = play(without(group, what), kind.scorer(state.weights))
            for index, task in enumerate(group):
                z, _ = task.judge.loads(played.placement(index, 0))
                balances.append(float(training.balance(task.judge.cost, z)) / attainable(task.judge))
        print(
            f"  without {what:<14} balance, of attainable {mean(balances):.3f}   ({time.process_time() - start:.0f} s)"
        )


def _blinded(peers: Any, columns: list[int], what: str, w: Any, tasks: Any, played: Any, like: Any) -> Any:
    if what == "cost":
        features = played.features.copy()
        features[..., columns] = 0.0
        played = replace(played, features=features)
    return peers.autoshard_replayed(w, tasks, played, like)


class _Blind:
    """AutoShard's policy that does not see some features."""

    def __init__(self, weights: Any, columns: list[int]) -> None:
        from shardc.placers.peers import AutoShard

        self._policy, self._columns = AutoShard(weights), columns
        self.start, self.placed = self._policy.start, self._policy.placed

    def scores(self, step: int, features: Any, mask: Any, devices: Any) -> Any:
        features = features.copy()
        features[..., self._columns] = 0.0
        return self._policy.scores(step, features, mask, devices)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

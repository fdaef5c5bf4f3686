import json
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from shardc import cli
from shardc.bench import STRATEGIES, Answer, Case, Comparison, Failure, compare, usable
from shardc.diagnostics import DiagnosticError
from shardc.passes.place import EVALUATIONS
from shardc.render.bench import comparison_json, comparison_picture, comparison_table
from shardc.spec import parse_spec
from shardc.suites import SUITES

HERE = [name for name, strategy in STRATEGIES.items() if name != "torchrec_planner" and not strategy.slow]


def spec_of(*tables: dict, memory: str = "8GiB", devices: int = 2) -> dict:
    return {
        "format": 1,
        "model": {"name": "m", "module": "ebc", "global_batch": 1024},
        "cluster": {"device": "h100-80gb", "devices_per_host": devices, "memory": memory, "reserve": "0%"},
        "defaults": {"rows": 100_000, "dim": 64, "pooling": 5.0},
        "compile": {"effort": "fast"},
        "table": [{"name": f"t{number}"} | table for number, table in enumerate(tables)],
    }


EASY = spec_of(*({"pooling": float(n)} for n in range(1, 8)))
# Three whole tables do not fit on two devices that have room for one and a half each: one must be cut.
TIGHT = spec_of(*[{"rows": 1_000_000, "sharding": ["table_wise", "column_wise"]}] * 3, memory="420MB")


@pytest.fixture(autouse=True)
def little_search(monkeypatch):
    monkeypatch.setitem(EVALUATIONS, "fast", 100)


def compared(*specs: dict, strategies: list[str] = HERE) -> Comparison:
    return compare("some", [(f"p{i}", parse_spec(spec)) for i, spec in enumerate(specs)], strategies)


# --- What is compared -------------------------------------------------------------------------------------------------


def test_every_strategy_places_an_easy_problem_and_none_beats_the_bound():
    (result,) = compared(EASY).results
    assert [run.strategy for run in result.runs] == HERE
    assert not [run for run in result.runs if run.failure]
    assert all(result.bound_ms <= ms * (1 + 1e-9) for ms in result.step_ms.values())
    assert result.ratio("shardc") == 1.0
    assert result.ratio("random") == pytest.approx(result.step_ms["random"] / result.step_ms["shardc"])
    assert all(0 <= run.balance <= 1 for run in result.runs)
    assert result.gap("shardc") == pytest.approx(result.step_ms["shardc"] / result.bound_ms - 1)


def test_every_warning_is_told_once():
    h100, cheap = EASY, EASY | {"cluster": EASY["cluster"] | {"device": "l4-24gb"}}
    found = compared(h100, cheap, h100, strategies=["random"]).warnings
    assert [(warning.code, warning.message.split()[2]) for warning in found] == [
        ("SH501", "h100-80gb"),
        ("SH501", "l4-24gb"),
    ]


def test_a_failure_is_counted_and_its_problem_left_out_of_every_average():
    strategies = ["shardc", "neuroshard_beam", "lookup_greedy"]
    comparison = compared(EASY, TIGHT, strategies=strategies)
    assert [result.problem for result in comparison.compared] == ["p0"]
    by_name = {summary.strategy: summary for summary in comparison.summaries}
    assert (by_name["shardc"].placed, by_name["neuroshard_beam"].placed, by_name["lookup_greedy"].placed) == (2, 2, 1)
    assert by_name["lookup_greedy"].failures == {Failure.NOTHING_FITS: 1}
    easy = compared(EASY, strategies=strategies)
    for alone in easy.summaries:
        assert by_name[alone.strategy].ratio == alone.ratio
        assert by_name[alone.strategy].gap == alone.gap


def test_a_strategy_that_places_nothing_does_not_empty_the_others_averages():
    comparison = compared(TIGHT, strategies=["shardc", "lookup_greedy"])
    shardc, lookup = comparison.summaries
    assert shardc.ratio.mean == 1.0
    assert (lookup.placed, lookup.ratio, lookup.seconds) == (0, None, None)


def test_without_shardc_ratios_are_to_the_best():
    (result,) = compared(EASY, strategies=["random", "cost_greedy"]).results
    assert min(result.ratio("random"), result.ratio("cost_greedy")) == 1.0
    assert result.bound_ms <= min(result.step_ms.values())


def test_a_model_that_no_strategy_can_place():
    crowded = spec_of(*[{"rows": 1_000_000, "sharding": ["table_wise"]}] * 3, memory="300MB")
    comparison = compared(crowded, strategies=["shardc", "random"])
    assert comparison.results[0].bound_ms is None
    assert [summary.placed for summary in comparison.summaries] == [0, 0]
    for show in (comparison_json, comparison_picture):
        assert show(comparison)
    assert "random failed: a table fits nowhere any more" in comparison_table(
        comparison, width=80, color=False, unicode=True
    )


def test_one_seed_one_result():
    def found(seed: int) -> list[float]:
        return list(compare("s", [("p", parse_spec(EASY))], HERE, seed=seed).results[0].step_ms.values())

    assert found(1) == found(1)
    assert found(1) != found(2)


def test_a_strategy_that_lacks_something_is_left_out_with_a_note_or_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("shardc.pipeline.POLICY", tmp_path / "no-policy")
    monkeypatch.setitem(sys.modules, "torchrec", None)
    monkeypatch.setitem(sys.modules, "torchrec.distributed.planner", None)
    names, notes = usable()
    assert set(STRATEGIES) - set(names) == {"torchrec_planner", "rl_policy", "rl_policy_16", "exact"}
    assert {note.code for note in notes} == {"SH604", "SH602"}
    assert {note.severity for note in notes} == {"warning"}
    with pytest.raises(DiagnosticError, match=r"SH604.*torchrec") as error:
        usable(["shardc", "torchrec_planner"])
    assert error.value.exit_code == 2


# --- How it is shown --------------------------------------------------------------------------------------------------


def test_the_table_of_one_problem():
    comparison = compared(EASY, strategies=["shardc", "random"])
    text = comparison_table(comparison, width=80, color=False, unicode=False)
    assert "7 tables on 2 devices" in text
    assert re.search(r"^shardc +[\d.]+ ms +1\.000x ", text, re.MULTILINE)
    assert text.index("shardc") < text.index("random")
    assert comparison.machine in text.replace("\n", " ")


def test_the_table_of_several_problems_shows_failures_beside_means():
    comparison = compared(EASY, TIGHT, strategies=["shardc", "lookup_greedy"])
    for width in (72, 80, 120):
        text = comparison_table(comparison, width=width, color=False, unicode=True)
        assert "2 problems; means over the 1 that all placed" in text.replace("\n", " ")
        assert re.search(r"^lookup_greedy .* 1/2$", text, re.MULTILINE)
        assert re.search(r"^lookup_greedy failed: 1 found nothing that fits$", text, re.MULTILINE)
        assert all(len(line) <= width for line in text.splitlines())


def test_a_failure_on_one_problem_is_told_in_words():
    comparison = compared(TIGHT, strategies=["shardc", "lookup_greedy"])
    text = comparison_table(comparison, width=72, color=False, unicode=True)
    assert re.search(r"^lookup_greedy +failed +[\d.]+ ms$", text, re.MULTILINE)
    assert "lookup_greedy failed: a table fits nowhere any more" in text


def test_json_says_everything():
    comparison = compared(EASY, TIGHT, strategies=["shardc", "lookup_greedy"])
    document = json.loads(comparison_json(comparison))
    assert document["machine"] == comparison.machine
    assert document["compared"] == 1
    assert [p["problem"] for p in document["problems"]] == ["p0", "p1"]
    failed = document["problems"][1]["runs"][1]
    assert (failed["failure"], failed["step_time_ms"], failed["ratio"]) == ("nothing_fits", None, None)
    assert document["summary"][1]["failures"] == {"nothing_fits": 1}
    assert document["problems"][0]["runs"][0]["gap"] >= 0


@pytest.mark.parametrize("specs", [[EASY], [EASY, TIGHT]])
def test_the_picture_is_one_svg_with_a_dot_for_every_strategy(specs):
    comparison = compared(*specs)
    picture = comparison_picture(comparison)
    root = ElementTree.fromstring(picture)
    svg = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{svg}svg"
    assert len(root.findall(f"{svg}circle")) == len([s for s in comparison.summaries if s.ratio])
    texts = [element.text for element in root.findall(f"{svg}text")]
    assert set(HERE) <= set(texts)
    assert comparison.machine in texts
    width, height = float(root.get("width")), float(root.get("height"))
    for circle in root.findall(f"{svg}circle"):
        assert 0 < float(circle.get("cx")) < width
        assert 0 < float(circle.get("cy")) < height
    assert not re.search(r"href|url\(|@import", picture)
    assert "prefers-color-scheme: dark" in picture


# --- The command ------------------------------------------------------------------------------------------------------

SPEC = """\
format = 1
[model]
name = "m"
module = "ebc"
global_batch = 1024
[cluster]
device = "h100-80gb"
devices_per_host = 2
[compile]
effort = "fast"
[defaults]
rows = 1000
dim = 16
pooling = 2
[[table]]
name = "a"
[[table]]
name = "b"
"""


@pytest.fixture
def bench(tmp_path, monkeypatch, capfd):
    """Run the command in a folder with a spec; exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("model.toml").write_text(SPEC)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["bench", *arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return stop.value.code or 0, out, err

    return run


TWO = ("--strategy", "shardc", "--strategy", "random")


def test_a_spec(bench):
    code, out, err = bench("model.toml", *TWO)
    assert code == 0
    assert out.startswith("model.toml  2 tables on 2 devices")
    assert err.startswith("bench 1/2 model.toml random\nbench 2/2\n")
    assert "SH501" in err


def test_quietly(bench):
    code, out, err = bench("model.toml", "-q", *TWO)
    assert (code, err) == (0, "")
    assert "random" in out


def test_several_specs_are_one_comparison(bench):
    Path("second.toml").write_text(SPEC.replace("dim = 16", "dim = 32"))
    _, out, _ = bench("model.toml", "second.toml", "-q", *TWO)
    assert "2 problems; means over all" in out


def test_the_first_problems_of_a_suite_as_json_and_as_a_picture(bench):
    arguments = ("--suite", "metasyn", "--problems", "1", "--format", "json", "--picture", "m.svg")
    code, out, _ = bench(*arguments, "--strategy", "cost_greedy", "--strategy", "lookup_greedy")
    document = json.loads(out)
    assert code == 0
    assert [p["problem"] for p in document["problems"]] == ["metasyn-00"]
    ElementTree.parse("m.svg")


def test_torchrecs_costs_instead_of_the_specs(bench):
    _, profile, _ = bench("model.toml", "-q", "--format", "json", "--strategy", "cost_greedy")
    _, torchrec, err = bench("model.toml", "--format", "json", "--strategy", "cost_greedy", "--cost", "torchrec")
    assert "SH505" in err
    ms = [json.loads(text)["problems"][0]["runs"][0]["step_time_ms"] for text in (profile, torchrec)]
    assert ms[0] != ms[1]


@pytest.mark.parametrize(
    ("nth", "problems", "placed", "word"),
    [(1, 0, {}, "there is nothing yet of 2 problems"), (4, 2, {"first": 2, "second": 1}, "what follows is of 2 of 2")],
)
def test_ctrl_c_leaves_what_was_found_so_far(bench, monkeypatch, nth, problems, placed, word):
    calls = []

    def pressed(case: Case) -> Answer:
        calls.append(case)
        if len(calls) == nth:
            signal.raise_signal(signal.SIGINT)
        return original.answer(case)

    original = STRATEGIES["cost_greedy"]
    for name in ("first", "second"):
        monkeypatch.setitem(STRATEGIES, name, replace(original, answer=pressed))
    arguments = ("--suite", "metasyn", "--problems", "2", "--strategy", "first", "--strategy", "second")
    code, out, err = bench(*arguments, "--format", "json", "-q")
    assert code == 130
    assert err.startswith(f"interrupted: {word}")
    document = json.loads(out) if out else {"problems": [], "summary": []}
    assert len(document["problems"]) == problems
    assert {summary["strategy"]: summary["placed"] for summary in document["summary"]} == placed
    calls.clear()
    code, out, err = bench(*arguments)
    assert code == 130
    assert ("second" in out) == ("2 problems, interrupted" in out) == bool(problems)


def test_the_list(bench):
    code, out, _ = bench("--list")
    assert code == 0
    for name in (*SUITES, *STRATEGIES):
        assert re.search(rf"^  {name} +\S", out, re.MULTILINE)


def test_help_ends_with_an_example(bench):
    code, out, _ = bench("--help")
    assert code == 0
    assert "Example:\n    shardc bench" in out


@pytest.mark.parametrize(
    ("arguments", "message", "fix"),
    [
        ("", "neither a spec nor a suite", "--suite NAME"),
        ("model.toml --suite metasyn", "a suite and a spec together", "--list"),
        ("--suite metasin", 'there is no suite "metasin"', 'did you mean "metasyn"?'),
        ("--suite x", 'there is no suite "x"', "known: dlrm-dcnv2, metasyn"),
        ("model.toml --strategy lookup_greed", 'there is no strategy "lookup_greed"', 'did you mean "lookup_greedy"?'),
        ("model.toml --problems 2", "--problems goes with --suite", ""),
        ("model.toml --cost guess", "'guess' is not one of", "--help"),
    ],
)
def test_wrong_usage(bench, arguments, message, fix):
    code, out, err = bench(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("SH902 ")
    assert message in err
    assert fix in err


def test_a_spec_that_is_wrong_or_not_there(bench):
    Path("bad.toml").write_text(SPEC.replace("dim = 16", "dim = 15"))
    code, out, err = bench("bad.toml", *TWO)
    assert code == 1
    assert "SH104" in out + err
    code, out, err = bench("none.toml", *TWO)
    assert (code, out) == (2, "")
    assert "SH001" in err


def test_a_picture_that_cannot_be_written(bench):
    code, _, err = bench("model.toml", "--picture", "no/such/folder.svg", *TWO)
    assert code == 2
    assert "SH004" in err

"""`shardc report`: the command, and the page in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import zlib
from pathlib import Path

import browser
import numpy as np
import pytest
from plans import plan, whole

from shardc.pipeline import load, run
from shardc.plan import plan_bytes, read_plan
from shardc.plan_diff import diff
from shardc.render.difference import difference
from shardc.render.markup import Markup
from shardc.suites import metasyn_pool, metasyn_task

EXAMPLES = Path(__file__).parents[2] / "examples"
HOSTILE = (
    "<script>document.title='taken'</script>",
    '"><img src=x onerror="document.title=\'taken\'">',
    "'); document.title='taken'; ('",
    "</style></script><h1>taken</h1>",
    "]]>&lt;&amp;&#60;",
    "שלום-עולם",
    "evil\u202etxt.exe",
    "line\nbreak\ttab\x00nul",
    "x" * 10_000,
    "名前 😀",
)


@pytest.fixture
def dlrm(tmp_path, monkeypatch) -> Path:
    """DLRM-DCNv2's spec and plan, in a folder of their own that is the working directory."""
    for name in ("dlrm-dcnv2.toml", "dlrm-dcnv2.plan.json"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return Path("dlrm-dcnv2.plan.json")


def written(path: Path, name: str, change) -> Path:
    """A plan with a change, in a file of another name."""
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    to = path.with_name(name)
    to.write_text(json.dumps(document), encoding="utf-8")
    return to


def renamed(names) -> object:
    """A change that gives the first tables other names, and the model the first of them."""

    def change(document) -> None:
        document["model"]["name"] = document["cluster"]["device"] = names[0]
        (module, tables), *_ = document["plan"].items()
        keys = [*names, *list(tables)[len(names) :]]
        document["plan"] = {module: dict(zip(keys, tables.values(), strict=True))}

    return change


def swapped(document) -> None:
    """A change that exchanges two devices for one table, splits none, and drops another."""
    (tables,) = document["plan"].values()
    table = tables["t_cat_22"]  # whole, on one device
    to = (table["ranks"][0] + 1) % 8
    table["ranks"] = [to]
    table["shards"][0]["placement"] = f"rank:{to}/cuda:{to}"
    del tables["t_cat_13"]
    document["score"]["step_time_ms"] = 1.5
    document["score"]["devices"][4]["forward_ms"] = 0.5


# --- The command ------------------------------------------------------------------------------------------------------


def test_a_report_lies_beside_its_plan_and_is_replaced(dlrm, run_command):
    done = run_command("report", str(dlrm))
    assert (done.code, done.out) == (0, "report written to dlrm-dcnv2.report.html\n")
    first = Path("dlrm-dcnv2.report.html").read_bytes()
    assert run_command("report", str(dlrm), "--quiet").out == ""
    assert Path("dlrm-dcnv2.report.html").read_bytes() == first


def test_stdout_gets_the_page_and_nothing_else(dlrm, run_command):
    done = run_command("report", str(dlrm), "-o", "-")
    assert done.code == 0
    assert done.out.startswith("<!doctype html>\n") and done.out.endswith("</html>\n")
    assert "SH501" in done.err
    assert not Path("-").exists()


def test_another_file_is_replaced_by_force_alone(dlrm, run_command):
    other = Path("notes.html")
    other.write_text("<p>mine</p>")
    done = run_command("report", str(dlrm), "-o", "notes.html")
    assert (done.code, other.read_text()) == (2, "<p>mine</p>")
    assert "SH004" in done.err and "--force" in done.err
    assert run_command("report", str(dlrm), "-o", "notes.html", "--force").code == 0
    assert other.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("target", ["dlrm-dcnv2.plan.json", "dlrm-dcnv2.toml", "old.plan.json"])
def test_plan_spec_and_base_are_never_replaced(dlrm, run_command, target):
    shutil.copy(dlrm, "old.plan.json")
    before = Path(target).read_bytes()
    done = run_command("report", str(dlrm), "--base", "old.plan.json", "-o", target, "--force")
    assert (done.code, Path(target).read_bytes()) == (2, before)
    assert "SH902" in done.err


def test_a_folder_that_is_not_there_is_told(dlrm, run_command):
    done = run_command("report", str(dlrm), "-o", "nowhere/report.html")
    assert done.code == 2
    assert "SH004" in done.err


def test_without_the_spec_a_report_says_what_it_lacks(dlrm, run_command):
    Path("dlrm-dcnv2.toml").unlink()
    done = run_command("report", str(dlrm), "-o", "-")
    assert done.code == 0
    assert "SH340" in done.err and "SH340" in done.out
    assert "<th>Critical time" not in done.out


def test_with_a_spec_that_is_broken_a_report_says_why(dlrm, run_command):
    spec = Path("dlrm-dcnv2.toml")
    spec.write_text(spec.read_text().replace("dim = 128", "dims = 128"))
    done = run_command("report", str(dlrm), "-o", "-")
    assert done.code == 0
    assert "SH340" in done.out and "SH101" in done.out


def test_a_plan_that_makes_no_sense_is_refused(dlrm, run_command):
    def cut(document) -> None:
        (tables,) = document["plan"].values()
        del tables["t_cat_20"]["shards"][3]

    written(dlrm, "cut.plan.json", cut)
    for arguments in (("cut.plan.json",), (str(dlrm), "--base", "cut.plan.json")):
        done = run_command("report", *arguments)
        assert done.code == 2
        assert "SH30" in done.err
    assert not list(Path().glob("*.html"))


@pytest.mark.parametrize("content", ["", "{", '{"format": 2}', "[]"])
def test_what_is_no_plan_is_refused(dlrm, run_command, content):
    Path("no.plan.json").write_text(content)
    done = run_command("report", "no.plan.json")
    assert done.code == 2
    assert "SH30" in done.err


# --- The page, as it is written ---------------------------------------------------------------------------------------


def page_of(run_command, *arguments: str) -> str:
    done = run_command("report", *arguments, "-o", "-")
    assert done.code == 0
    return done.out


def test_the_policy_permits_the_page_its_own_style_and_script_and_nothing_else(dlrm, run_command):
    page = page_of(run_command, str(dlrm))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#x27;", "'")
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy and "http" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert " style=" not in page and " on" not in re.sub(
        r">[^<]*<", "><", page.split("</style>")[1].split("<script>")[0]
    )


def test_names_are_escaped_wherever_they_stand(dlrm, run_command):
    hostile = written(dlrm, "hostile.plan.json", renamed(HOSTILE))
    for arguments in ((str(hostile),), (str(dlrm), "--base", str(hostile)), (str(hostile), "--base", str(dlrm))):
        page = page_of(run_command, *arguments)
        assert page.count("<script>") == 1 and page.count("</script>") == 1 and page.count("<style>") == 1
        assert "<img" not in page and "<h1>taken" not in page
        assert "\u202e" not in page and "\x00" not in page
        assert page.count("x" * 10_000) <= 1 + (str(hostile) == arguments[0])


def test_a_page_of_100_tables_is_small():
    spec = metasyn_task("hundred", np.random.default_rng(0), 100, 8, ["table_wise", "column_wise"], metasyn_pool())
    spec["compile"] = {"effort": "fast"}
    loaded = load(spec)
    from shardc.contents import contents
    from shardc.render.html import report_html

    plan = run(loaded).plan
    assert len(report_html(plan, contents(plan, loaded), plan).encode()) < 300_000


def test_of_very_many_tables_a_page_lists_the_costliest(dlrm, run_command, monkeypatch):
    assert "are listed." not in run_command("report", "-o", "-", str(dlrm)).out
    monkeypatch.setattr("shardc.render.view.MOST_TABLES", 5)
    page = run_command("report", "-o", "-", str(dlrm)).out
    assert page.count("only the 5 with most time are listed.") == 2  # of the map, and of the list
    rows = page.partition('id="table-list"')[2].partition("</tbody>")[0].partition("<tbody>")[2]
    assert rows.count("<tr") == 5


def test_what_has_changed_between_two_plans(dlrm):
    old, new = read_plan(dlrm), read_plan(written(dlrm, "new.plan.json", swapped))
    shown = difference(diff(old, new), Markup)
    assert "Tables: 1 removed, 1 moved. 290 MiB move between devices, 0.3% of all shards." in shown
    assert shown.index("t_cat_22") < shown.index("t_cat_13")
    assert "Tables: 1 added, 1 moved." in difference(diff(new, old), Markup)
    assert "No table has moved" in difference(diff(old, old), Markup)


def test_bytes_of_a_resharded_table_that_stay_do_not_move(dlrm):
    def halved(document) -> None:
        (tables,) = document["plan"].values()
        stays, other = tables["t_cat_22"]["ranks"][0], (tables["t_cat_22"]["ranks"][0] + 1) % 8
        tables["t_cat_22"] = {
            "compute_kernel": "fused",
            "sharding_type": "column_wise",
            "ranks": [stays, other],
            "shards": [
                {"placement": f"rank:{rank}/cuda:{rank}", "shard_offsets": [0, first], "shard_sizes": [590_152, 64]}
                for rank, first in ((stays, 0), (other, 64))
            ],
        }

    old, new = read_plan(dlrm), read_plan(written(dlrm, "new.plan.json", halved))
    shown = difference(diff(old, new), Markup)
    assert "Tables: 1 resharded. 146 MiB move between devices" in shown  # half of it, and a state a row


def test_a_table_of_a_row_more_is_told_with_all_its_digits():
    old, new = (plan({"a": whole(0, rows=rows)}) for rows in (98_000, 98_001))
    shown = difference(diff(old, new), Markup)
    assert "(98000×16)" in shown
    assert "(98001×16)" in shown


# --- The page in a browser --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def window():
    with browser.started() as window:
        yield window


@pytest.fixture
def shown(dlrm, run_command, window, tmp_path):
    """Make a report of a plan and open it."""

    def show(*arguments: str, **how) -> browser.Browser:
        page = tmp_path / "page.html"
        done = run_command("report", *(arguments or (str(dlrm),)), "-o", str(page), "--quiet")
        assert done.code == 0
        window.open(page, **how)
        return window

    return show


@pytest.fixture
def plans(dlrm, monkeypatch) -> dict[str, tuple[str, ...]]:
    """Arguments of reports on all kinds of plans."""
    written(dlrm, "hostile.plan.json", renamed(HOSTILE))
    written(dlrm, "new.plan.json", swapped)
    rng = np.random.default_rng(0)
    large = metasyn_task(
        "large", rng, 160, 32, ["table_wise", "column_wise", "row_wise", "data_parallel"], metasyn_pool()
    )
    large["compile"] = {"effort": "fast"}
    Path("large.plan.json").write_bytes(plan_bytes(run(load(large)).plan))
    return {
        "plan": (str(dlrm),),
        "changes": ("new.plan.json", "--base", str(dlrm)),
        "hostile": ("hostile.plan.json", "--base", str(dlrm)),
        "large": ("large.plan.json", "--base", str(dlrm)),
    }


def pixels(png: bytes) -> set[bytes]:
    """Colours of a screenshot, roughly: the distinct bytes triples of its unfiltered rows."""
    width = int.from_bytes(png[16:20])
    at, data = 8, b""
    while at < len(png):
        size, kind = int.from_bytes(png[at : at + 4]), png[at + 4 : at + 8]
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    rows = zlib.decompress(data)
    assert len(rows) > 3 * width
    return {rows[i : i + 3] for i in range(1, len(rows) - 3, 997)}


def test_pages_are_quiet_and_fit_every_screen(shown, plans, tmp_path):
    for name, arguments in plans.items():
        for width in (320, 360, 768, 1280):
            window = shown(*arguments, width=width)
            assert window.messages() == [], name
            assert window.requests() == [(tmp_path / "page.html").as_uri()], name
            window.run("document.querySelectorAll('details.dev').forEach((e) => { e.open = true; })")
            wide = window.run("return document.documentElement.scrollWidth")
            window.run("document.querySelectorAll('details.dev').forEach((e) => { e.open = false; })")
            assert wide <= width, (name, width)
            # What is there only to be read out would otherwise lengthen the page by what scrolls within it.
            unseen = (
                "return [...document.querySelectorAll('.scroll .unseen')].every(e => e.offsetParent.closest('.scroll'))"
            )
            assert window.run(unseen), name
            shot = window.screenshot()
            (tmp_path / f"{name}-{width}.png").write_bytes(shot)
            assert len(pixels(shot)) > 20


def test_names_with_markup_are_text(shown, plans):
    window = shown(*plans["hostile"])
    assert window.run("return document.title") == f"{HOSTILE[0]}: sharding plan"
    listed = window.run("return [...document.querySelectorAll('#table-list tbody th')].map(e => e.textContent)")
    for name in HOSTILE[:6]:
        assert name in listed
    assert "evil\\u202etxt.exe" in listed and "line\\nbreak\\ttab\\x00nul" in listed
    assert window.run("return document.querySelectorAll('img, h1 ~ h1, main script').length") == 0
    assert window.run("return getComputedStyle(document.querySelector('#table-list bdi')).unicodeBidi") == "isolate"


CONTRAST = """
const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const ratio = (a, b) => {
  const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
};
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c;
  }
};
const poor = [];
for (const e of document.querySelectorAll('body *')) {
  const style = getComputedStyle(e);
  const said = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (said && style.visibility === 'visible' && e.getClientRects().length && !['SCRIPT', 'title'].includes(e.tagName)) {
    const color = parse(e.tagName === 'text' ? style.fill : style.color);
    const is = ratio(color, behind(e));
    if (is < 4.5) poor.push([e.tagName, e.className.toString(), e.textContent.slice(0, 40), is]);
  }
  if (e.tagName === 'rect' && e.matches('.key rect')) {
    const is = ratio(parse(style.fill), behind(e));
    if (is < 3 && style.opacity === '1') poor.push(['rect', e.className.baseVal, '', is]);
  }
}
return poor;
"""


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_is_that_of_wcag_aa(shown, plans, dark):
    for arguments in plans.values():
        assert shown(*arguments, dark=dark).run(CONTRAST) == []


def test_dark_mode_has_other_colours(shown):
    colors = "const s = getComputedStyle(document.querySelector('section')); return [s.backgroundColor, s.color]"
    light, dark = (shown(dark=dark).run(colors) for dark in (False, True))
    assert light[0] != dark[0] and light[1] != dark[1]
    assert len({len(shown(dark=dark).screenshot()) for dark in (False, True)}) == 2


NAMES = "return [...document.querySelectorAll('#table-list tbody tr:not([hidden]) th')].map(e => e.textContent)"


def test_the_list_of_tables_is_sorted_and_filtered(shown):
    window = shown()
    by_time = window.run(NAMES)
    assert by_time[0] == "t_cat_20"  # most lookups of most rows
    window.run("document.querySelector('#table-list th button').focus()")
    window.keys("\ue007")
    assert window.run(NAMES) == sorted(by_time, key=lambda name: int(name.removeprefix("t_cat_")))
    assert window.run("return document.querySelector('#table-list th').ariaSort") == "ascending"
    window.keys("\ue007")
    assert window.run(NAMES)[0] == "t_cat_25"
    window.run(
        "[...document.querySelectorAll('#table-list th')].find(e => e.textContent === 'Rows').firstChild.click()"
    )
    assert window.run(NAMES)[-1] == "t_cat_5"  # three rows
    window.run("document.querySelector('#search').focus()")
    window.keys("CAT_1")
    assert set(window.run(NAMES)) == {"t_cat_1", *(f"t_cat_{i}" for i in range(10, 20))}
    window.run(
        "const e = document.querySelector('#type'); e.value = 'data_parallel'; e.dispatchEvent(new Event('change'))"
    )
    shown_now = window.run(NAMES)
    assert shown_now and all(name.startswith("t_cat_1") for name in shown_now)
    assert window.run("return document.querySelector('#shown').textContent") == f"{len(shown_now)} of 26 tables"


def test_the_pointer_tells_what_a_picture_shows(shown):
    window = shown()
    window.point("#devices .by-table .seg[data-t] rect")
    said = window.run("const e = document.querySelector('#tip'); return [e.hidden, e.textContent]")
    assert said[0] is False and said[1].startswith("t_cat_20\ndevice 0: ")
    assert window.run("return document.querySelectorAll('#devices .seg.hot').length") == 8  # row-wise, on all devices
    window.point(".grid")
    assert re.fullmatch(
        r"t_cat_\d+\n(\w+, on device [34]|not on device [34])",
        window.run("return document.querySelector('#tip').textContent"),
    )


def test_devices_open_by_keyboard_and_are_divided_in_two_ways(shown):
    window = shown()
    seen = (
        "return ['.by-table', '.by-phase'].map(s => document.querySelector('#devices summary ' + s).checkVisibility())"
    )
    assert window.run(seen) == [True, False]
    window.run("document.querySelector('#view-table').focus()")
    window.keys("\ue014")  # the right arrow
    assert window.run(seen) == [False, True]
    window.run("document.querySelector('#devices summary').focus()")
    window.keys("\ue007")
    rows = window.run("return [...document.querySelectorAll('#devices details[open] tbody tr')].map(e => e.innerText)")
    assert rows[0].startswith("t_cat_20")
    window.run(
        "const e = document.querySelector('#devices select'); e.value = 'largest'; e.dispatchEvent(new Event('change'))"
    )
    times = window.run("return [...document.querySelectorAll('#devices details')].map(e => Number(e.dataset.v))")
    assert times == sorted(times, reverse=True) and len(times) == 8


def test_a_page_is_useful_without_its_script(shown):
    window = shown(script=False)
    text = window.run("return document.body.innerText")
    for words in ("1.29 ms", "t_cat_20", "column_wise", "rl_policy+search was chosen"):
        assert words in text
    assert window.run("return document.querySelector('#search').checkVisibility()") is False
    assert window.run("return document.querySelectorAll('#devices .seg title').length") > 20


def test_a_page_has_the_structure_that_a_screen_reader_needs(shown, plans):
    window = shown(*plans["changes"])
    faults = window.run(
        """
        const faults = [];
        const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
        if (new Set(ids).size < ids.length) faults.push('an id occurs twice');
        for (const e of document.querySelectorAll('section'))
          if (!document.getElementById(e.getAttribute('aria-labelledby'))) faults.push('section without a name');
        for (const e of document.querySelectorAll('nav a'))
          if (!document.querySelector(e.getAttribute('href'))) faults.push('dead link ' + e.href);
        for (const e of document.querySelectorAll('table'))
          if (!e.caption || !e.querySelector('thead th[scope=col]')) faults.push('table without caption or head');
        for (const e of document.querySelectorAll('svg'))
          if (!e.matches('[aria-hidden=true], [role=img][aria-label]')) faults.push('picture without words');
        for (const e of document.querySelectorAll('.scroll, .wide'))
          if (e.tabIndex !== 0) faults.push('scrolls by pointer only');
        for (const e of document.querySelectorAll('input, select'))
          if (!e.labels.length && !e.ariaLabel) faults.push('control without a label');
        const levels = [...document.querySelectorAll('h1, h2, h3')].map((e) => Number(e.tagName[1]));
        if (levels[0] !== 1 || levels.some((l, i) => i && l > levels[i - 1] + 1)) faults.push('headings skip a level');
        for (const e of ['header', 'nav', 'main', 'footer'])
          if (document.querySelectorAll(e).length !== 1) faults.push('no ' + e);
        return faults;
        """
    )
    assert faults == []


def test_a_page_can_be_printed(shown):
    assert shown().printed().startswith(b"%PDF")

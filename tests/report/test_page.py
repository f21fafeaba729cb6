"""The page: every number is one of a raw JSON; it sorts, filters and opens in a browser, and says so without script."""

import html
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from snakemake.cli import get_argument_parser

from r2q.kept import ROOT
from r2q.report.collect import collect
from r2q.report.figures import figure
from r2q.report.page import page

PDFTOTEXT = shutil.which("pdftotext")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def report(run, tmp_path: Path) -> Path:
    """The page of the hand-made run, with one failed recipe and two figures."""
    run.fail("mini-opt", "r2q-g64", "weights are not finite")
    collect(run.config_path, run.results)
    for name in ("frontier-bytes", "tasks-mini-llama"):
        figure(name, run.results, tmp_path / "figures" / name)
    page([run.results], tmp_path / "report.html", tmp_path / "figures")
    return tmp_path / "report.html"


def test_every_number_is_one_of_a_raw_json(report: Path, run) -> None:
    """Numbers of the units' tables, exactly, and those of the large table, as the mean of a unit rounded."""
    text = report.read_text()
    for model in run.config["models"]:
        for recipe in run.config["recipes"]:
            found = re.search(rf'<details id="unit-{model}-{recipe}-seed0">.*?</details>', text, re.S)
            assert found is not None
            shown = dict(re.findall(r"<tr><td>([^<]+)</td><td>([^<]*)</td>", found[0]))
            path = run.folder(model, recipe) / "evaluation.json"
            if not path.is_file():
                assert shown == {}
                assert "failed" in found[0]
                continue
            raw = {f"{s['task']} {s['metric']}": s["value"] for s in json.loads(path.read_text())["scores"]}
            assert {name: float(value) for name, value in shown.items()} == raw
            (row,) = re.findall(rf'<tr data-model="{model}"[^>]*data-recipe="{recipe}".*?</tr>', text, re.S)
            cells = [float(value) for value in re.findall(r'data-sort="([^"]+)"', row)][3:]
            table = [raw["mini_text word_perplexity"], raw["mini_facts acc"], raw["mini_who acc"]]
            assert cells == pytest.approx([*table, sum(table[1:]) / 2])


def test_the_command_of_a_unit_names_the_unit(report: Path, run) -> None:
    """Snakemake takes all that follows --configfile for configs, and had read the unit's record as one."""
    commands = re.findall(r"<code>snakemake ([^<]*)</code>", report.read_text())
    assert len(commands) == 8
    for command in commands:
        arguments = get_argument_parser().parse_args(command.split())
        (target,), (config,) = arguments.targets, arguments.configfile
        assert Path(target).relative_to(run.results).name == "evaluation.json"
        assert Path(config) == run.results / "config.yaml"


def test_claims_have_the_digits_of_the_table_of_claims(tmp_path: Path) -> None:
    """-4.47 points (-6.61 to -2.34) on the page were -4.5 (-6.6 to -2.3) in claims.md, 1.1 was 1.10."""
    study = ROOT / "results" / "reference" / "smollm2"
    page([study], tmp_path / "page.html")
    number = r"<td>([^<]* (?:×|points))</td><td>([^<]*)</td>"
    cells = re.findall(rf'{number}<td class="text">r2q against rtn \(clipped', (tmp_path / "page.html").read_text())
    told = re.sub(r"[ |(]+", " ", (study / "tables" / "claims.md").read_text())
    assert len(cells) > 20
    assert [pair for pair in cells if " ".join(pair).removesuffix(" –") not in told] == []


@pytest.mark.parametrize("lost", [["low", "high"], ["difference", "low", "high"]])
def test_claims_without_any_interval_or_number_are_shown(lost: list[str], collected, tmp_path: Path) -> None:
    """Of one seed of one model without tasks, or where every training of R2Q diverged."""
    claims = pd.read_csv(ROOT / "results" / "reference" / "smollm2" / "tables" / "claims.csv")
    (collected / "tables").mkdir()
    claims.assign(**dict.fromkeys(lost, "")).to_csv(collected / "tables" / "claims.csv", index=False)
    page([collected], tmp_path / "page.html")
    measured = re.findall(r"</td><td>([^<]*)</td><td>–</td>", (tmp_path / "page.html").read_text())
    assert len(measured) == len(claims)
    assert ("–" in measured) == ("difference" in lost)


def test_claims_of_one_model_alone_are_shown_beside_those_over_all(collected, tmp_path: Path) -> None:
    """As in claims.md: of what one model trained and the others did not, the page had said nothing."""
    claims = pd.read_csv(ROOT / "results" / "reference" / "smollm2" / "tables" / "claims.csv")
    over_all = claims[claims["granularity"] == "g64"].assign(model="all")
    (collected / "tables").mkdir()
    pd.concat([claims, over_all]).to_csv(collected / "tables" / "claims.csv", index=False)
    page([collected], tmp_path / "page.html")
    shown = re.findall(r'<td class="text">[^<]*, ([^<,]*)</td></tr>', (tmp_path / "page.html").read_text())
    assert Counter(shown) == Counter(claims["granularity"])


def test_it_is_one_file_that_asks_for_nothing(report: Path) -> None:
    text = re.sub(r"<svg.*?</svg>", "", report.read_text(), flags=re.S)
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', text)
    assert "weights are not finite" in text
    assert "<svg" in report.read_text()
    ids = re.findall(r'\bid="([^"]+)"', report.read_text())
    assert len(ids) == len(set(ids))
    for anchor in re.findall(r'href="#([^"]+)"', text):
        assert html.unescape(anchor) in ids


def test_several_runs_share_a_page_and_no_anchor(make_run, tmp_path: Path) -> None:
    """Two runs of one name, models and recipes, in folders of their own: each keeps its numbers and its figures."""
    runs = [make_run(name) for name in ("a", "b")]
    for run in runs:
        collect(run.config_path, run.results)
        figures = run.results.parent.parent / "figures" / run.config["run"]  # where the page looks
        figure("frontier-bytes", run.results, figures / "frontier-bytes")
    page([run.results for run in runs], tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text()
    assert text.count("<svg") == 2
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
    for run in runs:
        assert f"{run.results.as_posix()}/mini-llama/" in text  # the unit's folder
    with pytest.raises(ValueError, match="is of one run, not of 2"):
        page([run.results for run in runs], tmp_path / "none.html", tmp_path)


def test_names_are_escaped(run, tmp_path: Path) -> None:
    run.fail("mini-opt", "r2q-g64", "<script>alert(1)</script> & more")
    collect(run.config_path, run.results)
    page([run.results], tmp_path / "report.html", None)
    assert "<script>alert" not in (tmp_path / "report.html").read_text()


ACTIONS = """
<script>
const errors = []; addEventListener("error", (event) => errors.push(event.message));
const rows = () => [...document.querySelectorAll("#demo-main tbody tr")].filter((row) => !row.hidden);
const sizes = () => rows().map((row) => row.cells[2].dataset.sort).filter(Boolean).map(Number);
const found = { all: rows().length };
const head = document.querySelectorAll("#demo-main thead th")[2];
head.focus(); found.focus = document.activeElement === head;
head.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
found.ascending = sizes(); found.aria = head.getAttribute("aria-sort"); head.click(); found.descending = sizes();
const score = document.querySelectorAll("#demo-main thead th")[6];
found.scores = [0, 1].map(() => { score.click(); return rows().map((row) => row.cells[6]?.dataset.sort ?? ""); });
const choose = (name, value) => { const f = document.querySelector(`[data-filter=${name}]`); f.value = value;
  f.dispatchEvent(new Event("input", { bubbles: true })); };
choose("model", "mini-opt"); found.model = [...new Set(rows().map((row) => row.dataset.model))];
choose("recipe", "rtn"); found.recipes = [...new Set(rows().map((row) => row.dataset.recipe))];
choose("model", ""); choose("recipe", "");
location.hash = "#unit-mini-llama-rtn-g64-seed0"; dispatchEvent(new HashChangeEvent("hashchange"));
found.open = document.getElementById("unit-mini-llama-rtn-g64-seed0").open; found.errors = errors;
document.body.innerHTML = ""; document.body.append(Object.assign(document.createElement("pre"),
  { id: "found", textContent: JSON.stringify(found) }));
</script>
"""


def browser(page: Path, *options: str) -> str:
    """What a browser without a window prints of a page."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_browser(report: Path) -> None:
    report.write_text(report.read_text().replace("</body>", f"{ACTIONS}</body>"))
    text = browser(report, "--dump-dom")
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', text, re.S)[1]))  # type: ignore[index]
    assert found["all"] == 12  # two models with chance, majority and four recipes
    assert found["focus"]  # by the keyboard alone
    assert found["ascending"] == sorted(found["ascending"])
    assert found["aria"] == "ascending"
    assert found["descending"] == sorted(found["ascending"], reverse=True)
    for scores, order in zip(found["scores"], (1, -1), strict=True):  # what has none last, among them a failed row
        numbers = [float(score) for score in scores if score]
        assert "" in scores
        assert scores == [*sorted(filter(None, scores), key=float, reverse=order < 0), *[""] * (12 - len(numbers))]
    assert found["model"] == ["mini-opt"]
    assert found["recipes"] == ["rtn-g64"]
    assert found["open"]
    assert found["errors"] == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_on_a_narrow_screen_a_long_name_leaves_room_for_numbers(report: Path) -> None:
    """The column of names stays where it is while the others scroll below it: as wide as the screen it hid them."""
    asked = """<script>const name = document.querySelector("#demo-main tbody th").getBoundingClientRect();
    document.body.innerHTML = `<pre id="found">${name.width / innerWidth}</pre>`;</script></body>"""
    report.write_text(report.read_text().replace("</body>", asked).replace(">chance<", f">{'a_name_' * 14}<"))
    text = browser(report, "--window-size=500,900", "--dump-dom")
    assert 0.1 < float(re.search(r'<pre id="found">(.*?)</pre>', text)[1]) < 0.5  # type: ignore[index]


@pytest.mark.skipif(CHROMIUM is None or PDFTOTEXT is None, reason="no Chromium, or nothing that reads its PDF")
def test_on_paper_a_long_table_is_whole(report: Path, tmp_path: Path) -> None:
    """On a screen it scrolls; on paper all below the edge, and to the right of it, was missing."""
    rows = "".join(f"<tr><td>row{i}</td>{'<td>12.34 ±0.56</td>' * 14}<td>end{i}</td></tr>" for i in range(90))
    report.write_text(report.read_text().replace("</tbody>", f"{rows}</tbody>", 1))
    pdf = tmp_path / "page.pdf"
    browser(report, f"--print-to-pdf={pdf}")
    reading = [str(PDFTOTEXT), "-layout", str(pdf), "-"]
    text = subprocess.run(reading, capture_output=True, text=True, timeout=120, check=True).stdout
    assert {f"{end}{i}" for end in ("row", "end") for i in range(90)} - set(text.split()) == set()

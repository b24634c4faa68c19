"""`gcflow report`: its bytes, its numbers, and the page in a real browser."""

import base64
import csv
import hashlib
import io
import json
import re
import shutil
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from markupsafe import escape
from projects import ROOT, gcflow, prepare_data, tiny_params, write_project
from workflows import duplicate

from gcflow.pipeline.figures import KINDS, figure_kind
from gcflow.pipeline.params import Params
from gcflow.pipeline.report.charts import chart
from gcflow.pipeline.report.write import write_report
from gcflow.pipeline.stages import Stages
from gcflow.readable import number

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECTIONS = ("/", "/claims", "/tables", "/figures", "/samples", "/theory", "/runs", "/provenance")
RUN = "/run/digits/gc/0"
CLAIMS = {
    "confidence": 0.95,
    "prior_scale": 1.0,
    "most_seeds": 9,
    "margins": {"final": 0.1, "falls-at-small-noise": 0.01},
    "entries": {
        "end": {
            "place": "Table 1", "claim": "GC ends better than IC.", "test": "runs", "statistic": "final",
            "lower": "gc", "higher": "ic",
        },
        "cost": {
            "place": "Figure 3", "claim": "Cost falls.", "test": "transport", "statistic": "falls-at-small-noise",
        },
        "proved": {"place": "Theorem 1", "claim": "It holds.", "test": "theory", "statement": "Theorem 1"},
    },
}  # fmt: skip
THEORY = {
    "horizons": [1.0], "intervals": [4, 16], "points": 16, "scramblings": 2, "sigmas": [1.0, 20.0, 80.0], "paths": 0,
    "seed": 0,
}  # fmt: skip


def report(folder: Path) -> Path:
    return folder / "results" / "report.html"


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    """The finished tiny project with a ledger of claims and checks of the theory besides, and its report."""
    folder = duplicate(finished, tmp_path_factory.mktemp("report") / "project")
    params = tiny_params() | {"claims": CLAIMS}
    params["datasets"]["mixture2d"]["theory"] = THEORY
    write_project(folder, params)
    for command in (("theory", "mixture2d"), ("claims",), ("report",)):
        gcflow(folder, *command)
    return folder


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, project):
    """Opens the report, at a route, in a context of its own, which must end without errors and requests."""
    opened = []

    def open_page(route="", **settings):
        context = browser.new_context(**settings)
        page = context.new_page()
        wrong = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        local = (report(project).as_uri(), "data:")
        page.on("request", lambda request: request.url.startswith(local) or wrong.append(request.url))
        page.goto(report(project).as_uri() + (f"#{route}" if route else ""))
        opened.append((context, wrong))
        return page

    yield open_page
    for context, wrong in opened:
        context.close()
        assert wrong == []


def assert_shown(page, route):
    """That the view of a route opens, and that it is the only one."""
    page.wait_for_function("route => document.getElementById(route).checkVisibility()", arg=route)
    seen = "all => all.filter(view => view.checkVisibility()).map(view => view.id)"
    assert page.eval_on_selector_all("main > .view", seen) == [route]


def go(page, route):
    page.evaluate("route => { location.hash = route }", route)
    assert_shown(page, route)


def test_the_same_files_give_the_same_bytes_again_and_in_another_place(finished, tmp_path):
    before = report(finished).read_bytes()
    folder = duplicate(finished, tmp_path / "elsewhere" / "deeper")
    gcflow(folder, "report", env={"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"})
    assert report(folder).read_bytes() == before
    # `dvc pull` of what the report reads leaves the snapshots behind.
    for snapshots in (folder / "results").glob("*/*/*/snapshots"):
        shutil.rmtree(snapshots)
    write_report(Params(folder / "params.yaml"), "embedded")
    assert report(folder).read_bytes() == before


def test_the_stage_reads_all_that_others_make_but_snapshots(project):
    stages = Stages(Params(project / "params.yaml"), "embedded")
    made = {out for stage in stages for out in stage.outs if stage.name != "report"}
    left = made - set(stages.report().deps)
    assert left
    assert {Path(out).name for out in left} == {"snapshots"}
    assert set(stages.report().deps) <= made | {"paper.yaml"}


def test_the_first_page_has_the_papers_first_table_with_its_published_numbers_in_sight(visit, project):
    page = visit()
    table = page.locator('[id="/"] table', has_text="iCT-GC").first
    rows = list(csv.reader((project / "results/digits/tables/table1.csv").open()))
    assert table.locator("tbody tr").first.locator("td").first.inner_text() == rows[1][1]
    assert page.locator('[id="/"] details table').first.is_visible()


def test_every_section_opens_by_its_link_alone_and_a_run_by_its_own(visit):
    page = visit()
    for route in SECTIONS:
        link = page.locator(f'nav a[href="#{route}"]')
        link.click()
        assert_shown(page, route)
        assert link.get_attribute("aria-current") == "page"
        assert page.locator(f'[id="{route}"] h2').is_visible()
    page.locator('nav a[href="#/runs"]').click()
    page.locator(f'#runs-table a[href="#{RUN}"]').click()
    assert_shown(page, RUN)
    assert "iCT-GC" in page.title()
    page.go_back()
    assert_shown(page, "/runs")


def test_a_reload_keeps_the_section_and_an_address_of_none_opens_the_first(visit):
    page = visit("/tables")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.reload()
    assert_shown(page, "/tables")
    for address in ("main", "/tables%", "/nothing"):
        page.evaluate("address => { location.hash = address }", address)
        page.reload()
        assert_shown(page, "/")


def test_every_link_leads_somewhere(visit, project):
    page = visit()
    hrefs = page.eval_on_selector_all("a", "links => [...new Set(links.map(link => link.getAttribute('href')))]")
    inside = [href for href in hrefs if href.startswith("#")]
    assert len(inside) > len(SECTIONS) + 9
    ids = page.evaluate("links => links.filter(link => !document.getElementById(link.slice(1)))", inside)
    assert ids == []
    others = set(hrefs) - set(inside)
    assert others == {"workflow-report.html"}
    assert (project / "results" / "workflow-report.html").exists()


def test_every_picture_loads_and_says_what_it_is(visit):
    page = visit()
    pictures = page.eval_on_selector_all(
        "img",
        "async all => { await Promise.all(all.map(i => i.decode())); return all.map(i => [i.naturalWidth, i.alt]) }",
    )
    assert len(pictures) > 20
    assert all(width > 0 and text for width, text in pictures)


def test_claims_and_runs_are_found_by_their_words(visit, project):
    page = visit("/claims")
    records = json.loads((project / "results/claims.json").read_text())["records"]
    rows = page.locator("#claims-table tbody tr:visible")
    assert rows.count() == len(records) == 3
    page.locator('[data-find="claims-table"]').fill("Mixture2d supported")
    wanted = [(record["dataset"], record["verdict"]) == ("mixture2d", "supported") for record in records]
    assert rows.count() == sum(wanted)
    assert page.locator('[id="/claims"] output').inner_text() == f"{sum(wanted)} of 3 shown"
    go(page, "/runs")
    page.locator('[data-find="runs-table"]').fill("digits/gc/0")
    assert page.locator("#runs-table tbody tr:visible").count() == 1


def test_the_keyboard_reaches_the_content_and_opens_and_closes_a_picture(visit):
    page = visit()
    focused = "document.activeElement."
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focused}className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate(f"{focused}id") == "main"
    assert_shown(page, "/")
    for _ in SECTIONS:
        page.keyboard.press("Shift+Tab")
        if page.evaluate(f"{focused}hash") == "#/figures":
            break
    assert page.evaluate(f"getComputedStyle({focused[:-1]}).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert_shown(page, "/figures")
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focused}className") == "enlarge"
    page.keyboard.press("Enter")
    page.locator("dialog img").wait_for(state="visible")
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="hidden")
    assert page.evaluate(f"{focused}className") == "enlarge"


def test_a_run_shows_its_samples_at_each_step(visit, project):
    page = visit(RUN)
    grids = sorted((project / "results/digits/gc/seed0/evaluation/grids").glob("*.png"))
    shown = page.locator(f'[id="{RUN}"] .gallery img')
    assert shown.evaluate_all("all => all.map(image => image.alt)") == [
        f"Samples of digits/gc/0 at step {int(grid.stem)}" for grid in grids
    ]
    assert [base64.b64decode(uri.partition(",")[2]) for uri in shown.evaluate_all("all => all.map(i => i.src)")] == [
        grid.read_bytes() for grid in grids
    ]


# Of every visible text: its colour against the first opaque background below it, by WCAG's formula.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const found = [];
  const walker = document.createTreeWalker(document.querySelector("body"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, title")) continue;
    let below = element;
    while (below.parentElement && rgba(getComputedStyle(below).backgroundColor)[3] < 255) below = below.parentElement;
    const style = getComputedStyle(element);
    const ink = light(rgba(element.closest("svg") ? style.fill : style.color));
    const [high, low] = [ink, light(rgba(getComputedStyle(below).backgroundColor))].sort((x, y) => y - x);
    found.push([(high + 0.05) / (low + 0.05), walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_by_day_and_by_night(visit, scheme):
    page = visit(color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(map(int, re.findall(r"\d+", background)[:3])) > 3 * 128
    assert bright == (scheme == "light")
    for route in (*SECTIONS, RUN):
        go(page, route)
        found = page.evaluate(CONTRASTS)
        assert len(found) > 15
        assert [pair for pair in found if pair[0] < 4.5] == [], route


def test_nothing_is_wider_than_a_phone(visit):
    page = visit(viewport={"width": 390, "height": 844})
    for route in (*SECTIONS, RUN):
        go(page, route)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, route


def test_headings_descend_without_a_gap_and_ids_are_unique(visit):
    page = visit()
    assert page.get_attribute("html", "lang") == "en"
    assert page.locator("h1").count() == 1
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(h => Number(h.tagName[1]))")
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = page.eval_on_selector_all("[id]", "all => all.map(element => element.id)")
    assert len(ids) == len(set(ids))


def test_without_scripts_every_view_opens_by_its_link(browser, project):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report(project).as_uri())
    for route in ("/claims", "/runs", RUN):
        assert not page.locator(f'[id="{route}"] h2').is_visible()
        page.locator(f'a[href="#{route}"]:visible').first.click()
        assert page.locator(f'[id="{route}"] h2').is_visible()
    context.close()


def test_numbers_on_the_page_are_those_of_the_files(visit, project):
    page = visit(RUN)
    folder = project / "results/digits/gc/seed0"
    records = json.loads((folder / "evaluation/metrics.json").read_text())
    chosen = [
        r["value"]
        for r in records
        if (r["metric"], r["weights"], r["step"], r["network_evaluations"]) == ("classifier-fd", "ema", 40, 1)
    ]
    assert len(chosen) == 2
    view = page.locator(f'[id="{RUN}"]')
    cell = view.locator("table", has_text="At the last step").locator("tbody tr").first.locator("td").first
    assert cell.inner_text() == number(sum(chosen) / 2)
    weights = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    view.locator("a", has_text="its files").first.click()
    files = page.locator('[id="/provenance/train@digits-gc-0"]')
    assert files.locator("li", has_text="weights.safetensors").locator(".hash").inner_text() == weights
    page.go_back()
    (job,) = json.loads((folder / "jobs.json").read_text())
    facts = view.inner_text()
    assert job["device"] in facts
    assert job["commit"][:12] in facts
    assert view.locator("pre").text_content() == json.dumps(
        json.loads((folder / "config.json").read_text())["config"], indent=2, ensure_ascii=False
    )

    page = visit("/tables")
    written = list(csv.reader(io.StringIO((project / "results/digits/tables/table1.csv").read_text())))
    section = page.locator('[id="/tables/digits/table1"] table').first
    rows = section.evaluate("table => [...table.rows].map(row => [...row.cells].map(cell => cell.textContent.trim()))")
    assert [row[:-1] for row in rows] == [row[:-1] for row in written]

    page = visit("/runs")
    listed = page.locator("#runs-table tbody tr", has_text="digits/gc/0").inner_text()
    assert f"classifier FD ↓ {number(sum(chosen) / 2)}" in listed

    page = visit("/claims")
    for record in json.loads((project / "results/claims.json").read_text())["records"]:
        row = page.locator(f'[id="/claims/{record["dataset"]}/{record["name"]}"]').inner_text()
        assert record["verdict"] in row
        assert record["shown"] in row


def test_it_says_that_nothing_is_fid_where_nothing_is(project):
    text = report(project).read_text()
    assert "No number here is an FID" in text
    # But in what is published, folded.
    assert not re.search(r">\s*FID [↓↑]", re.sub(r"<details.*?</details>", "", text, flags=re.DOTALL))


def test_at_a_scale_of_inceptions_features_it_does_not_say_so_before_anything_is_made(tmp_path):
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["datasets"] = {"cifar10": document["datasets"]["cifar10"]}
    write_project(tmp_path, document | {"claims": None})
    write_report(Params(tmp_path / "params.yaml"), "paper")
    text = report(tmp_path).read_text()
    assert "not trained" in text
    assert "No number here is an FID" not in text
    assert "FID, KID and IS are of Inception" in text


def test_numbers_of_a_secondary_source_are_shown_with_that_word(tmp_path):
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["datasets"] = {"digits": document["datasets"]["digits"]}
    write_project(tmp_path, document | {"claims": None})
    shutil.copy(ROOT / "paper.yaml", tmp_path)
    write_report(Params(tmp_path / "params.yaml"), "embedded")
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", report(tmp_path).read_text())
    for published in ("7.37", "6.41", "3.74", "6.38", "6.73", "7.77"):
        found = {cell.strip() for cell in cells if published in cell}
        assert found == {f"{published} unconfirmed"}


def test_options_are_shown_as_json_and_no_words_in_marks_of_code(project):
    text = report(project).read_text()
    manifest = json.loads((project / "data/mixture2d/manifest.json").read_text())
    assert escape(json.dumps(manifest["options"], ensure_ascii=False)) in text
    assert not [name for name in KINDS if "`" in " ".join(figure_kind(name).caption)]


def test_the_first_page_tells_what_a_verdict_of_each_kind_needs(visit):
    page = visit()
    assert "verdicts support their claim; " in page.locator('[id="/"] .tiles').inner_text()
    note = page.locator('[id="/"] .note', has_text="A verdict on runs").inner_text()
    assert "one on transport cost over samples" in note
    assert "Statements of theory are numerical checks" in note


def test_a_project_that_is_only_begun_names_what_is_missing(tmp_path, browser):
    folder = prepare_data(write_project(tmp_path / "begun", tiny_params() | {"claims": CLAIMS}), "digits")
    gcflow(folder, "train", "digits/ic/0")
    said = gcflow(folder, "report").stderr
    text = report(folder).read_text()
    lacking = int(re.search(r"(\d+)\W+stages not there yet", said)[1])
    assert lacking == len(list(Stages(Params(folder / "params.yaml"), "embedded"))) - 3
    for words in (
        "This report is incomplete",
        "gcflow evaluate digits/ic/0",
        "gcflow train digits/gc/0",
        "gcflow table digits table1",
        "gcflow figure digits convergence",
        "gcflow claims --scale embedded",
        "gcflow prepare mixture2d",
        "trained, not evaluated",
    ):
        assert words in text
    page = browser.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{report(folder).as_uri()}#/run/digits/ic/0")
    assert_shown(page, "/run/digits/ic/0")
    assert wrong == []
    page.close()


@pytest.fixture(scope="module")
def spare(project, tmp_path_factory):
    """A copy of the project whose files a test may replace for itself."""
    return duplicate(project, tmp_path_factory.mktemp("spare") / "project")


@contextmanager
def replaced(path, content):
    """Another content of a file, or None, for a while."""
    before = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_text(content)
    yield
    path.unlink(missing_ok=True)
    path.write_bytes(before)


def test_a_run_without_a_record_of_its_jobs_says_so(spare):
    with replaced(spare / "results/digits/gc/seed0/jobs.json", None):
        write_report(Params(spare / "params.yaml"), "embedded")
    text = report(spare).read_text()
    assert "Not recorded: this run was trained before jobs were" in text
    assert "Not recorded for 1\u00a0run." in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("digits/gc/seed0/config.json", '{"config": {}}'),
        ("digits/gc/seed0/metrics.jsonl", '{"step": 10\n'),
        ("digits/gc/seed0/evaluation/metrics.json", '[{"metric": "classifier-fd"}]'),
        ("digits/gc/seed0/jobs.json", '[{"step": 0}]'),
        ("digits/tables/table1.json", '{"rows": []}'),
        ("mixture2d/theory.json", "{}"),
        ("claims.json", "not JSON"),
    ],
)
def test_a_damaged_file_is_named_and_only_what_it_tells_is_left_out(spare, name, content, capsys):
    with replaced(spare / "results" / name, content):
        write_report(Params(spare / "params.yaml"), "embedded")
    assert len(re.findall(rf"warning: .*{re.escape(name)}: .*; left out\n", capsys.readouterr().err)) == 1
    text = report(spare).read_text()
    assert len(re.findall(rf"<li>results/{re.escape(name)}: [^<]*</li>", text)) == 1
    assert "iCT-IC" in text
    assert ("damaged</" in text) == ("gc/seed0" in name)
    write_report(Params(spare / "params.yaml"), "embedded")
    assert "Left out, since" not in report(spare).read_text()


def test_a_scale_without_data_sets_has_an_empty_report(tmp_path):
    folder = write_project(tmp_path)
    gcflow(folder, "report", "--scale", "paper")
    text = report(folder).read_text()
    assert "<b>0 <small>of 0</small></b> runs trained and measured" in text
    assert "There is no claims.yaml" in text
    assert "gcflow claims" not in text.partition('id="/claims"')[2].partition("</article>")[0]


def test_labels_seeds_and_titles_make_the_report_out_of_date_and_training_settings_do_not(tmp_path):
    def slice_after(change):
        params = tiny_params()
        change(params["datasets"]["digits"])
        loaded = Params(write_project(tmp_path, params) / "params.yaml")
        return Stages(loaded).report().slice(loaded)

    before = slice_after(lambda digits: None)
    assert slice_after(lambda digits: digits["runs"]["gc"].update(label="another")) != before
    assert slice_after(lambda digits: digits["tables"]["table1"].update(title="another")) != before
    assert slice_after(lambda digits: digits["training"].update(learning_rate=0.5)) == before


def test_curves_are_drawn_where_their_points_are():
    drawn = chart("Loss", {"a": [(0.0, 1.0), (5.0, 10.0), (10.0, 100.0)]}, may_be_logarithmic=True)
    places = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]*)"', drawn.svg)[1].split()]
    (left, low), (middle, between), (right, high) = places
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    assert between == pytest.approx((low + high) / 2, abs=0.1)
    assert low > high
    assert "step 5: 10" in drawn.svg
    assert drawn.note == "logarithmic"
    assert chart("Loss", {"a": [(1.0, 1.0)]}, may_be_logarithmic=True) is None
    for low, high in [(2e-5, 0.00098), (0.7, 2.9), (1.01, 20.0), (3.0, 95.0), (-1.0, 1.4), (2e-9, 5.0), (7.0, 7.0)]:
        for may in (True, False):
            drawn = chart("Loss", {"a": [(0.0, low), (5.0, high)]}, may_be_logarithmic=may)
            assert 2 <= drawn.svg.count('class="grid"') <= 9
    many = chart("Loss", {"a": [(float(x), x % 7 + 1.0) for x in range(1000)]}, may_be_logarithmic=False)
    assert many.note == "one of 5 logged points"
    assert "circle" not in many.svg

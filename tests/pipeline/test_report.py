"""`gcflow report`: its bytes, its numbers, and the page in a real browser."""

import csv
import hashlib
import io
import json
import re
import shutil
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from markupsafe import escape
from PIL import Image
from projects import ROOT, error_line, gcflow, prepare_data, tiny_params, write_project
from workflows import duplicate

from gcflow.errors import GcflowError
from gcflow.pipeline.figures import KINDS, figure_kind
from gcflow.pipeline.ledger.legend import CAPTION
from gcflow.pipeline.params import Params
from gcflow.pipeline.report.charts import Series, chart
from gcflow.pipeline.report.figures import right_end
from gcflow.pipeline.report.images import png_picture, stored_png
from gcflow.pipeline.report.jobs import read_jobs
from gcflow.pipeline.report.write import write_report
from gcflow.pipeline.stages import Stages
from gcflow.readable import moment, number

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECTIONS = ("/", "/claims", "/tables", "/figures", "/samples", "/theory", "/runs", "/provenance")
RUN = "/run/digits/gc/0"
CLAIMS = {
    "confidence": 0.95,
    "power": 0.8,
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
    page.wait_for_function("route => !document.getElementById(route).hidden", arg=route)
    views = page.eval_on_selector_all("main > .view", "all => all.filter(view => !view.hidden).map(view => view.id)")
    assert views == [route]


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
    assert set(stages.report().deps) <= made


def test_the_order_of_curves_is_read_off_at_their_right_end():
    training = "label,training step [updates],fd mean [x],fd std\nA,5,1.0,\nA,1000,7.0,\nB,5,9.0,\nB,1000,2.346,\n"
    assert right_end(training) == "At step 1\u00a0000, from low to high: B 2.35; A 7."
    constant = "label,batch,sigma [data units],cost,error\nIC,,,5.5,0.1\nGC,,0.1,9,0.1\nGC,,80.0,4,0.1\n"
    assert right_end(constant) == "At σ = 80, from low to high: GC 4; IC 5.5."
    shorter = "label,training step [updates],fd\nnull,5,9.0\nnull,500,3.0\nA,5,9.0\nA,1000,7.0\n"
    assert right_end(shorter) == "Each at its last step, from low to high: null 3; A 7."


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
    for address in ("main", "/tables%", "/nothing", "claims-table"):
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


def test_a_table_is_sorted_by_its_values_in_both_directions(visit, project):
    page = visit("/theory")
    checks = json.loads((project / "results/mixture2d/theory.json").read_text())["checks"]
    head = page.locator('[id="/theory/mixture2d"] th', has_text="measured")
    column = '[id="/theory/mixture2d"] tbody td:nth-child(3)'
    assert head.get_attribute("aria-sort") == "none"
    for direction, descending in (("ascending", False), ("descending", True)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == direction
        values = page.eval_on_selector_all(column, "cells => cells.map(cell => Number(cell.dataset.sort))")
        assert values == sorted((check["measured"] for check in checks), reverse=descending)


def test_claims_are_filtered_by_verdict_and_data_set(visit, project):
    page = visit("/claims")
    records = json.loads((project / "results/claims.json").read_text())["records"]
    rows = page.locator("#claims-table tbody tr:visible")
    assert rows.count() == len(records) == 3
    page.locator("label.chip", has_text="mixture2d").click()
    assert rows.count() == sum(record["dataset"] != "mixture2d" for record in records)
    assert page.locator(".filters output").inner_text() == f"{rows.count()} of 3 shown"
    page.locator("label.chip", has_text="mixture2d").click()
    verdict = records[0]["verdict"]
    page.locator("label.chip", has_text=verdict).click()
    assert rows.count() == sum(record["verdict"] != verdict for record in records)


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
    assert page.evaluate(f"{focused}tagName") == "H2"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focused}className") == "enlarge"
    page.keyboard.press("Enter")
    page.locator("dialog img").wait_for(state="visible")
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="hidden")
    assert page.evaluate(f"{focused}className") == "enlarge"


def test_the_slider_shows_the_samples_of_the_chosen_step(visit, project):
    page = visit(RUN)
    view = page.locator(f'[id="{RUN}"]')
    grids = sorted((project / "results/digits/gc/seed0/evaluation/grids").glob("*.png"))
    assert view.locator(".steps output").inner_text() == str(int(grids[-1].stem))
    view.locator(".steps input").focus()
    page.keyboard.press("ArrowLeft")
    assert view.locator(".steps output").inner_text() == str(int(grids[-2].stem))
    pictures = view.locator(".steps img:visible")
    assert pictures.count() == 1
    assert f"at step {int(grids[-2].stem)}" in pictures.get_attribute("alt")


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


def test_without_scripts_everything_is_there(browser, project):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report(project).as_uri())
    assert page.locator('[id="/claims"] h2').is_visible()
    assert page.locator(f'[id="{RUN}"] h2').is_visible()
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
    assert float(cell.get_attribute("data-sort")) == pytest.approx(sum(chosen) / 2, rel=1e-12)
    assert cell.inner_text() == number(sum(chosen) / 2)
    weights = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert view.locator(".files li", has_text="weights.safetensors").locator(".hash").inner_text() == weights
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
    assert [row[:-1] for row in rows] == written

    page = visit("/runs")
    listed = page.locator("#runs-table tbody tr", has_text="digits/gc/0").locator("td", has_text="classifier FD")
    assert float(listed.get_attribute("data-sort")) == pytest.approx(sum(chosen) / 2, rel=1e-12)

    page = visit("/claims")
    for record in json.loads((project / "results/claims.json").read_text())["records"]:
        row = page.locator(f'[id="/claims/{record["dataset"]}/{record["name"]}"]').inner_text()
        assert record["verdict"] in row
        assert record["shown"] in row


def test_it_says_that_nothing_is_fid_where_nothing_is(project):
    text = report(project).read_text()
    assert "No number here is an FID" in text
    assert not re.search(r">\s*FID [↓↑]", text)


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
    write_report(Params(tmp_path / "params.yaml"), "embedded")
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", report(tmp_path).read_text())
    for published in ("7.37", "6.41", "3.74", "6.38", "6.73", "7.77"):
        found = {cell.strip() for cell in cells if published in cell}
        assert found == {f"{published} unconfirmed"}


def test_options_are_shown_as_json_and_no_words_in_marks_of_code(project):
    text = report(project).read_text()
    manifest = json.loads((project / "data/mixture2d/manifest.json").read_text())
    assert escape(json.dumps(manifest["options"], ensure_ascii=False)) in text
    assert not [
        caption for caption in (*(figure_kind(name).caption for name in KINDS), CAPTION) if "`" in " ".join(caption)
    ]


def test_the_first_page_tells_what_a_verdict_of_each_kind_needs(visit):
    page = visit()
    assert "verdicts support their claim; " in page.locator('[id="/"] .tiles').inner_text()
    note = page.locator('[id="/"] .note', has_text="A verdict on runs").inner_text()
    assert "one on transport cost over samples" in note
    assert "statements of theory are numerical checks" in note


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
        ("digits/gc/seed0/evaluation/samples.png", "no picture"),
        ("digits/gc/seed0/jobs.json", '[{"step": 0}]'),
        ("digits/tables/table1.csv", "method,seeds\nGC\n"),
        ("mixture2d/theory.json", "{}"),
        ("claims.json", "not JSON"),
    ],
)
def test_a_damaged_file_is_named_and_the_old_report_stays(spare, name, content):
    before = report(spare).read_bytes()
    with replaced(spare / "results" / name, content), pytest.raises(GcflowError, match=re.escape(name)):
        write_report(Params(spare / "params.yaml"), "embedded")
    assert report(spare).read_bytes() == before


def test_a_refusal_is_one_line(spare):
    with replaced(spare / "results/claims.json", "[]"):
        assert "claims.json: not what its stage writes" in error_line(gcflow(spare, "report", check=False).stderr)


def test_a_scale_without_data_sets_has_an_empty_report(tmp_path):
    folder = write_project(tmp_path)
    gcflow(folder, "report", "--scale", "paper")
    text = report(folder).read_text()
    assert "0 measured, of 0" in text
    assert "params.yaml has no claims to test." in text
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


def test_jobs_share_the_seconds_of_the_steps_that_they_trained():
    lines = [{"step": 10, "images_per_second": 50.0}, {"step": 20, "images_per_second": 100.0}]
    facts = {
        "begun": "2026-01-01T00:00:00+00:00",
        "host": "h",
        "device": "d",
        "processes": 1,
        "torch": "t",
        "gcflow": "g",
    }
    entries = [
        facts | {"step": 0, "commit": "a" * 40, "dirty": True, "slurm_job": None},
        facts | {"step": 10, "commit": None, "dirty": None, "slurm_job": "7"},
    ]
    first, second = read_jobs(entries, lines, batch=5)
    assert (first.steps, first.seconds) == ((0, 10), 1.0)
    assert (second.steps, second.seconds) == ((10, 20), 0.5)
    assert first.environment.code == "aaaaaaaaaaaa, with uncommitted changes"
    assert second.environment.code == "no git repository"
    assert moment(first.begun) == "2026-01-01 00:00 UTC"
    assert (first.slurm_job, second.slurm_job) == ("–", "7")


@pytest.mark.parametrize("shape", [(9, 7), (300, 301), (5, 4, 3)])
def test_a_stored_png_has_the_pixels_that_it_was_given(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(stored_png(pixels))) as image:
        assert (np.asarray(image) == pixels).all()


def test_only_a_magnified_grid_is_stored_at_its_own_size(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12), dtype=np.uint8)
    Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(tmp_path / "magnified.png")
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    magnified, plain = png_picture(tmp_path / "magnified.png"), png_picture(tmp_path / "plain.png")
    assert (magnified.width, magnified.height, magnified.pixelated) == (48, 32, True)
    assert (plain.width, plain.height, plain.pixelated) == (12, 8, False)


def test_curves_are_drawn_where_their_points_are():
    drawn = chart("Loss", [Series("a", [(0.0, 1.0), (5.0, 10.0), (10.0, 100.0)])], may_be_logarithmic=True)
    places = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]*)"', drawn.svg)[1].split()]
    (left, low), (middle, between), (right, high) = places
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    assert between == pytest.approx((low + high) / 2, abs=0.1)
    assert low > high
    assert "step 5: 10" in drawn.svg
    assert drawn.note == "logarithmic"
    assert chart("Loss", [Series("a", [(1.0, 1.0)])], may_be_logarithmic=True) is None
    for low, high in [(2e-5, 0.00098), (0.7, 2.9), (1.01, 20.0), (3.0, 95.0), (-1.0, 1.4), (2e-9, 5.0), (7.0, 7.0)]:
        for may in (True, False):
            drawn = chart("Loss", [Series("a", [(0.0, low), (5.0, high)])], may_be_logarithmic=may)
            assert 2 <= drawn.svg.count('class="grid"') <= 9
    many = chart("Loss", [Series("a", [(float(x), x % 7 + 1.0) for x in range(1000)])], may_be_logarithmic=False)
    assert many.note == "one of 5 logged points"
    assert "circle" not in many.svg

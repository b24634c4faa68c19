"""Figures: their labels and units, that they show the stages' numbers and no others, their files, their refusals."""

import hashlib
import json
import re
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.quiver import Quiver
from matplotlib.text import Text
from projects import ROOT, contents, dump, environment, prepare_data, tiny_params, write_project

from gcflow.errors import GcflowError
from gcflow.pipeline import figures
from gcflow.pipeline.drawing.canvas import PAGE_WIDTH
from gcflow.pipeline.drawing.image_files import tile
from gcflow.pipeline.drawing.looks import COLOURS, GC, IC, looks, other_looks
from gcflow.pipeline.figure import draw_figure, write_figure
from gcflow.pipeline.figures import KINDS
from gcflow.pipeline.folders import reference_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.schema import Figure
from gcflow.weights import save_tensors

STEPS, SIGMAS = [20, 40], [0.1, 1.0, 10.0]
# data set/figure: the first file that is missed when nothing but data is there.
FIGURES = {
    "digits/convergence": "results/digits/ic/seed0/evaluation/metrics.json",
    "digits/discrepancy": "results/digits/denoiser/seed0/discrepancy.json",
    "digits/transport-cost": "results/digits/transport.json",
    "digits/samples": "results/digits/ic/seed0/evaluation/samples.npy",
    "mixture2d/samples": "results/mixture2d/ic/seed0/evaluation/samples.npy",
    "mixture2d/transport-cost": "results/mixture2d/transport.json",
    "mixture2d/theory": "results/mixture2d/theory.json",
    "mixture2d/paths": "results/mixture2d/theory.json",
}
SIGMA = {"digits": "sigma [data in -1..1]", "mixture2d": "sigma [data units]"}
COST = "cost drawn: IC's minus saving, or exact [squared data units]"
SAVING = ["saving against IC on the same pairs [squared data units]", "saving standard error [squared data units]"]
OWN = ["pairs [count]", "cost of these pairs alone [squared data units]", "cost standard error [squared data units]"]


def document():
    """The tiny grid with a figure of every kind, two seeds where a deviation is drawn."""
    whole = tiny_params()
    digits, mixture = whole["datasets"]["digits"], whole["datasets"]["mixture2d"]
    digits["runs"]["denoiser"]["seeds"] = [0, 1]
    mixture["transport"] = digits["transport"]
    mixture["theory"] = {
        "horizons": [3.0], "intervals": [4, 16], "points": 64, "scramblings": 2, "sigmas": [1.0, 10.0, 80.0],
        "paths": 2, "seed": 0,
    }  # fmt: skip
    mixture["figures"] |= {
        "transport-cost": {"kind": "transport", "title": "Cost of points"},
        "theory": {"kind": "theory", "title": "Tiny theory"},
        "paths": {"kind": "trajectories", "title": "Tiny paths"},
    }
    return whole


def read(path):
    return json.loads(path.read_text())


def metrics(draw):
    """Two generation seeds at the last step, another metric, other weights and a second sampler, none to be mixed."""
    records = []
    for step in STEPS:
        for generation in (0, 1) if step == STEPS[-1] else (0,):
            for metric, weights, evaluations in (
                ("classifier-fd", "ema", 1),
                ("classifier-kd", "ema", 1),
                ("classifier-fd", "raw", 1),
                ("classifier-fd", "ema", 2),
            ):
                record = {"metric": metric, "value": float(draw.uniform(1, 50)), "step": step, "weights": weights}
                seeds = {"network_evaluations": evaluations, "generation_seed": generation}
                records.append(record | seeds | {"protocol": "classifier"})
    return records


def costs(draw):
    """A transport.json without the keys that no figure reads; the few pairs of the exact flow happen to be dear."""
    names, samples = ("cost", "standard_error", "saving", "saving_standard_error"), {"ic": 64, "ot": 64, "gc": 64}
    records = [{"coupling": "ic", "cost": 9.0, "standard_error": 0.2}]
    for batch in (16, 32):
        numbers = (6 - batch / 32, 0.1, 3 + batch / 32, 0.05)
        records.append({"coupling": "ot", "batch": batch, **dict(zip(names, numbers, strict=True))})
    for sigma in SIGMAS:
        for coupling, independent in (("gc", 9.0), ("gc-exact", 9.5)):
            saving, error = map(float, draw.uniform(0.1, 5, 2))
            numbers = (independent - saving, error, saving, error / 4)
            records.append({"coupling": coupling, "sigma": sigma, **dict(zip(names, numbers, strict=True))})
    return {"predictor": {"run": "any/ic/0"}, "samples": samples | {"gc-exact": 8}, "records": records}


def theory(draw):
    """A theory.json with the curves that figures draw."""

    def positive(count):
        return [float(value) for value in draw.uniform(0.01, 0.5, count)]

    distance = {"alpha": 1, "ratio": [1.2, 0.9], "standard_error": [0.1, 0.3], "gradient_difference": positive(2)}
    levels = [1.0, 10.0, 80.0]
    second = {"sigmas": levels, "independent": positive(3), "generator_augmented": positive(3)}
    second |= {"standard_error": positive(3), "closed_form": {"IC": positive(3), "GC": positive(3)}}
    lemma = {"sigmas": levels, "derivative": [-v for v in positive(3)], "right_side": [-v for v in positive(3)]}
    paths = {
        name: {"straightness": 0.8125, "crossing_pairs": 1, "states": draw.normal(size=(3, 40, 2)).tolist()}
        for name in ("independent pairs", "trained GC pairs", "PF-ODE", "GC flow")
    }
    curves = {
        "Theorem 1, T = 3": {"horizon": 3.0, "intervals": [4, 16], "points": 64, "the norm": distance},
        "Theorem 2": second,
        "Lemma 1": lemma,
        "Figure 1": {"sigmas": [3.0, 1.0, 0.05], "paths": paths},
    }
    return {"checks": [{"holds": True}, {"holds": False}], "curves": curves}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with every file that a figure shows; shared, so only figures may be written to it."""
    root = prepare_data(write_project(tmp_path_factory.mktemp("figures"), document()), "digits", "mixture2d")
    draw, results = np.random.default_rng(0), root / "results"
    for method, seed in (("ic", 0), ("ic", 1), ("gc", 0), ("cd", 0)):
        folder = results / f"digits/{method}/seed{seed}/evaluation"
        dump(folder / "metrics.json", metrics(draw))
        np.save(folder / "samples.npy", draw.integers(0, 256, (16, 1, 8, 8), dtype=np.uint8))
    reference = reference_path(root, "digits", "classifier")
    save_tensors(reference, {"features": torch.zeros(1)}, {"real_half_against_half": {"classifier-fd": 0.25}})
    points = results / "mixture2d/ic/seed0/evaluation/samples.npy"
    points.parent.mkdir(parents=True)
    np.save(points, draw.normal(size=(16, 2)).astype(np.float32))
    for seed in (0, 1):
        records = [
            {"estimate": estimate, "sigma": sigma, "value": float(draw.uniform(0.1, 9)), "standard_error": 0.1}
            for sigma in SIGMAS
            for estimate in ("denoiser", "exact", "upper-bound")
        ]
        dump(results / f"digits/denoiser/seed{seed}/discrepancy.json", {"records": records})
    exact = {"sigmas": SIGMAS, "generator_augmented": [4.0, 2.0, 1.0], "wasserstein": 0.5}
    dump(results / "digits/transport.json", costs(draw))
    dump(results / "mixture2d/transport.json", costs(draw) | {"closed_form": exact})
    dump(results / "mixture2d/theory.json", theory(draw))
    return root


@pytest.fixture(scope="module")
def drawn(project):
    """A figure by its name, and its CSV as it is on the disk; each is drawn once."""

    @cache
    def draw(name):
        params = Params(project / "params.yaml")
        dataset, figure = name.split("/")
        write_figure(params, dataset, figure)
        canvas = draw_figure(params, dataset, figure).canvas
        canvas.draw_without_rendering()
        return canvas, pd.read_csv(project / f"results/{dataset}/figures/{figure}.csv")

    return draw


def lines(axes):
    """Label to the points of each line that is in the legend, or would be."""
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axes.lines}


def same(found, *expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one, dtype=float), np.asarray(other, dtype=float), rtol=1e-9)


def bands(axes):
    """The lowest and highest edge of each band at each of its points, in the order of drawing."""
    found = []
    for band in (part for part in axes.collections if isinstance(part, PolyCollection)):
        edges = pd.DataFrame(band.get_paths()[0].vertices, columns=["x", "y"]).groupby("x")["y"]
        found.append((edges.min().to_numpy(), edges.max().to_numpy()))
    return found


def test_every_kind_of_figure_is_tested_here():
    datasets = document()["datasets"]
    kinds = {datasets[dataset]["figures"][name]["kind"] for dataset, name in (f.split("/") for f in FIGURES)}
    assert kinds == set(KINDS)


def test_the_kind_of_the_documentation_is_one_file(project, tmp_path, monkeypatch):
    section = (ROOT / "docs/extending.md").read_text().partition("## A kind of figure")[2]
    (tmp_path / "bars.py").write_text(re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)[1])
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(tmp_path)])
    params, figure = Params(project / "params.yaml"), Figure(kind="convergence", title="Costs")
    bars = figures.figure_kind("bars")
    assert bars.inputs(params, "digits", figure).files == [Path("results/digits/transport.json")]
    drawn = bars.draw(params, "digits", figure)
    assert (
        {row["coupling"]: row["cost"] for row in drawn.rows}["ot"]
        == drawn.canvas.axes[0].patches[1].get_height()
        == 5.0
    )
    assert bars.block == "transport"


# What they look like.


@pytest.mark.parametrize("name", FIGURES)
def test_every_axis_has_a_label_that_ends_with_its_unit(drawn, name):
    canvas, _ = drawn(name)
    plotted = [axes for axes in canvas.axes if axes.axison]
    assert len(plotted) == 0 if name == "digits/samples" else plotted
    for axes in plotted:
        for siblings, label in (
            (axes.get_shared_x_axes().get_siblings(axes), "get_xlabel"),
            (axes.get_shared_y_axes().get_siblings(axes), "get_ylabel"),
        ):
            # Panels that share an axis say it once, at the edge.
            labels = {getattr(sibling, label)() for sibling in siblings} - {""}
            assert len(labels) == 1
            assert re.search(r"\S\s\(.+\)$", labels.pop())


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("digits/discrepancy", "noise level σ (data in [−1, 1])"),
        ("digits/transport-cost", "noise level σ (data in [−1, 1])"),
        ("mixture2d/transport-cost", "noise level σ (data units)"),
        ("digits/convergence", "training step (optimizer updates)"),
    ],
)
def test_the_horizontal_axis_names_the_unit_of_the_data_set(drawn, name, unit):
    assert drawn(name)[0].axes[0].get_xlabel() == unit


@pytest.mark.parametrize("name", FIGURES)
def test_it_fits_a_page_with_text_of_eight_to_nine_points_and_nothing_cut_or_on_the_data(drawn, name):
    canvas, _ = drawn(name)
    assert canvas.get_size_inches()[0] <= PAGE_WIDTH + 1e-9
    box, renderer = canvas.get_tightbbox(), canvas.canvas.get_renderer()
    assert (box.min >= -0.01).all()
    assert (box.max <= canvas.get_size_inches() + 0.01).all()
    texts = [text for text in canvas.findobj(Text) if text.get_visible() and text.get_text().strip()]
    assert {text.get_fontsize() for text in texts} <= {8, 9}
    for legend in canvas.legends:
        place = legend.get_window_extent(renderer)
        assert not any(place.overlaps(axes.get_tightbbox(renderer)) for axes in canvas.axes)
    assert not any(axes.get_legend() for axes in canvas.axes)
    assert len(canvas.legends) == (not name.endswith(("samples", "paths", "convergence")))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digits/discrepancy", "bands: ± one standard deviation over seeds"),
        ("digits/discrepancy", "what a solid curve has above its dashed one is the error of the denoiser"),
        ("digits/transport-cost", "of IC's cost, of others' difference from it"),
        ("mixture2d/theory", "bars, upwards only: 2 standard errors"),
    ],
)
def test_the_legend_says_what_bands_and_bars_are(drawn, name, said):
    (legend,) = drawn(name)[0].legends
    assert said in legend.get_title().get_text()


def test_methods_of_one_figure_look_different_and_a_method_looks_the_same_in_all(tmp_path):
    params = Params(ROOT / "params.yaml")
    seen = {}
    for dataset in params.datasets:
        for figure in params.dataset(dataset).figures.values():
            chosen = looks(figure.methods)
            assert len(set(chosen.values())) == len(figure.methods)
            for method, look in chosen.items():
                assert seen.setdefault(method, look) == look
    assert seen["denoiser-ic"] == seen["ic"] == IC
    assert seen["ic-dropout"].colour == IC.colour
    assert seen["ic-dropout"] != IC


def test_methods_that_are_not_of_the_paper_take_looks_that_are_free():
    names = [f"mine-{number}" for number in range(len(list(other_looks())) - 1)]
    chosen = looks(["ic", *names])
    assert len(set(chosen.values())) == len(names) + 1
    assert chosen["ic"] == IC
    assert {look.colour for look in looks(names[: len(COLOURS)]).values()} == set(COLOURS)


# What they show.


def test_convergence_shows_mean_and_deviation_over_seeds_of_ema_samples(project, drawn):
    canvas, table = drawn("digits/convergence")
    (axes,) = canvas.axes
    edges = iter(bands(axes))
    fd = "classifier-fd {} [squared feature distance]"
    for label, method, seeds in (("iCT-IC (2\u00a0seeds)", "ic", (0, 1)), ("iCT-GC (1\u00a0seed)", "gc", (0,))):
        curves = []
        for seed in seeds:
            records = read(project / f"results/digits/{method}/seed{seed}/evaluation/metrics.json")
            wanted = ("classifier-fd", "ema", 1)
            values = {
                step: [
                    r["value"]
                    for r in records
                    if (r["metric"], r["weights"], r["network_evaluations"]) == wanted and r["step"] == step
                ]
                for step in STEPS
            }
            assert [len(found) for found in values.values()] == [1, 2]
            curves.append([sum(found) / len(found) for found in values.values()])
        mean, std = np.mean(curves, axis=0), np.std(curves, axis=0, ddof=1) if len(seeds) > 1 else [np.nan] * 2
        same(lines(axes)[label], STEPS, mean)
        rows = table[table["method"] == method]
        steps = rows["training step [optimizer updates]"]
        same((steps, rows[fd.format("mean")], rows[fd.format("std over seeds")]), STEPS, mean, std)
        if len(seeds) > 1:
            same(next(edges), mean - std, mean + std)
    assert next(edges, None) is None
    assert canvas.get_supxlabel().endswith("mean over seeds, bands: ± one standard deviation over seeds")
    same((lines(axes)["real data, half against half"][1],), [0.25, 0.25])
    # The curves are named where they end, from the top down, and no name lies on another.
    names = [text for text in axes.texts if text.get_visible()]
    assert {text.get_text() for text in names} == set(lines(axes))
    boxes = sorted((text.get_window_extent() for text in names), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))
    ends = {label: float(y[-1]) for label, (_, y) in lines(axes).items()}
    heights = {text.get_text(): text.get_window_extent().y0 for text in names}
    assert sorted(ends, key=ends.__getitem__) == sorted(heights, key=heights.__getitem__)
    assert set(table["function evaluations"]) == {1}
    assert len(table) == 4


def test_discrepancy_shows_each_estimate_over_seeds(project, drawn):
    canvas, table = drawn("digits/discrepancy")
    (axes,) = canvas.axes
    documents = [read(project / f"results/digits/denoiser/seed{seed}/discrepancy.json") for seed in (0, 1)]
    labels = {"denoiser": "Denoiser", "exact": "Denoiser, exact", "upper-bound": "Denoiser, bound by the predictor"}
    for (estimate, label), edge in zip(labels.items(), bands(axes), strict=True):
        curves = [[r["value"] for r in found["records"] if r["estimate"] == estimate] for found in documents]
        mean, std = np.mean(curves, axis=0), np.std(curves, axis=0, ddof=1)
        same(lines(axes)[label], SIGMAS, mean)
        same(edge, mean - std, mean + std)
        rows = table[table["estimate"] == estimate]
        names = ("discrepancy mean [squared noise units]", "discrepancy std over seeds [squared noise units]")
        same((rows[SIGMA["digits"]], *(rows[name] for name in names)), SIGMAS, mean, std)
    assert len(table) == 9
    assert "mean over 2 seeds each, bands: " in canvas.legends[0].get_title().get_text()


@pytest.mark.parametrize("dataset", ["digits", "mixture2d"])
def test_transport_shows_what_each_coupling_saves_on_pairs_in_common_with_independent_ones(project, drawn, dataset):
    canvas, table = drawn(f"{dataset}/transport-cost")
    (axes,) = canvas.axes
    content = read(project / f"results/{dataset}/transport.json")
    labels = {"gc": "GC, iCT-IC as predictor", "gc-exact": "GC, exact flow of the data (8 of 64 pairs)"}
    for (coupling, label), edge in zip(labels.items(), bands(axes), strict=True):
        found = [record for record in content["records"] if record["coupling"] == coupling]
        own, own_error, saving, error = np.array([list(record.values())[2:] for record in found]).T
        # What these pairs cost by themselves is 0.5 more for the exact flow, and is not shown.
        same(lines(axes)[label], SIGMAS, 9.0 - saving)
        same(edge, 9.0 - saving - 2 * error, 9.0 - saving + 2 * error)
        rows = table[table["label"] == label]
        same((rows[SIGMA[dataset]], rows[COST]), SIGMAS, 9.0 - saving)
        same(rows[[*SAVING, *OWN]].to_numpy().T, saving, error, [8 if "8" in label else 64] * 3, own, own_error)
    flat = {"IC": (9.0, 0.2), "OT in batches of 16": (5.5, 0.05), "OT in batches of 32": (5.0, 0.05)}
    for (label, (cost, error)), patch in zip(flat.items(), axes.patches, strict=True):
        same((lines(axes)[label][1],), [cost, cost])
        same((patch.get_y(), patch.get_height()), cost - 2 * error, 4 * error)
        (row,) = table[table["label"] == label].to_dict("records")
        saved = [np.nan, np.nan] if label == "IC" else [9.0 - cost, error]
        same(([row[name] for name in (COST, *SAVING, *OWN)],), [cost, *saved, 64, cost, 0.2 if label == "IC" else 0.1])
        assert np.isnan(row[SIGMA[dataset]])
    exact = table[table["coupling"] == "gc-closed-form"]
    if dataset == "digits":
        assert len(table) == 9
        return
    same(lines(axes)["GC, closed form"], SIGMAS, [4.0, 2.0, 1.0])
    same((exact[SIGMA[dataset]], exact[COST]), SIGMAS, [4.0, 2.0, 1.0])
    assert table[table["coupling"] == "wasserstein"][COST].tolist() == [0.5]
    assert len(table) == 13


def test_a_grid_of_images_shows_the_pixels_that_its_table_hashes(project, drawn):
    canvas, table = drawn("digits/samples")
    panels = {
        "real data": "data/digits/samples.npy",
        "iCT-IC": "results/digits/ic/seed0/evaluation/samples.npy",
        "CD": "results/digits/cd/seed0/evaluation/samples.npy",
    }
    shown = [axes for axes in canvas.axes if axes.images]
    for axes, (panel, file) in zip(shown, panels.items(), strict=True):
        rows = table[table["panel"] == panel]
        images = np.load(project / file)[rows["index in file"]]
        assert axes.get_title(loc="center") == panel
        assert set(rows["file"]) == {file}
        assert (axes.images[0].get_array() == tile(images, 4)).all()
        assert [hashlib.sha256(image.tobytes()).hexdigest() for image in images] == rows["sha256 of pixels"].tolist()
        assert (rows["row"] * 4 + rows["column"]).tolist() == list(range(16))
    assert set(table["panel"]) == set(panels)
    assert table[table["panel"] == "real data"]["index in file"].iloc[[0, -1]].tolist() == [0, 1796]


def test_scattered_points_are_those_of_the_files(project, drawn):
    canvas, table = drawn("mixture2d/samples")
    files = {"real data": "data/mixture2d/samples.npy", "iCT-IC": "results/mixture2d/ic/seed0/evaluation/samples.npy"}
    for axes, (panel, file) in zip(canvas.axes, files.items(), strict=True):
        rows = table[table["panel"] == panel]
        points = np.load(project / file)[rows["index in file"]]
        (dots,) = (part for part in axes.collections if isinstance(part, PathCollection))
        same((dots.get_offsets(), rows[["x1 [data units]", "x2 [data units]"]]), points, points)
        assert len(rows) == 16


def test_trajectories_are_all_paths_of_each_flow_with_arrows_along_them(project, drawn):
    canvas, table = drawn("mixture2d/paths")
    content = read(project / "results/mixture2d/theory.json")["curves"]["Figure 1"]
    for axes, (flow, found) in zip(canvas.axes, content["paths"].items(), strict=True):
        states = np.array(found["states"])
        rows = table[table["flow"] == flow]
        assert len(axes.lines) == states.shape[1]
        (arrows,) = (part for part in axes.collections if isinstance(part, Quiver))
        steps = np.diff(states, axis=0)
        lengths = np.linalg.norm(steps, axis=2)
        # Of two steps the longer one has the middle of the path in it.
        longer, paths = lengths.argmax(axis=0), np.arange(states.shape[1])
        same(((arrows.U, arrows.V),), (steps[longer, paths] / lengths[longer, paths, None]).T)
        for number, line in enumerate(axes.lines):
            same((line.get_xydata(),), states[:, number])
            path = rows[rows["path"] == number]
            same((path["sigma [data units]"], path.iloc[:, -2:]), content["sigmas"], states[:, number])
        start, end = (part.get_offsets() for part in axes.collections if isinstance(part, PathCollection))
        same((start, end), states[0], states[-1])
    assert len(table) == 4 * 40 * 3
    assert canvas.axes[1].lines[0].get_color() == canvas.axes[3].lines[0].get_color() == GC.colour


def test_the_theory_shows_the_curves_of_its_checks(project, drawn):
    canvas, table = drawn("mixture2d/theory")
    curves = read(project / "results/mixture2d/theory.json")["curves"]
    first, second, lemma = curves["Theorem 1, T = 3"]["the norm"], curves["Theorem 2"], curves["Lemma 1"]
    nothing = [np.nan] * 3
    expected = {
        "Theorem 1, losses, T = 3": {"the norm": ([4, 16], [0.2, 0.1], [0.1, 0.3])},
        "Theorem 1, gradients, T = 3": {"the norm": ([4, 16], first["gradient_difference"], nothing[:2])},
        "Theorem 2, dotted: closed form": {
            "IC": (second["sigmas"], second["independent"], nothing),
            "GC": (second["sigmas"], second["generator_augmented"], second["standard_error"]),
            "IC, closed form": (second["sigmas"], second["closed_form"]["IC"], nothing),
            "GC, closed form": (second["sigmas"], second["closed_form"]["GC"], nothing),
        },
        "Lemma 1: differences, right side (line)": {
            "right side": (lemma["sigmas"], [-value for value in lemma["right_side"]], nothing),
            "differences": (lemma["sigmas"], [-value for value in lemma["derivative"]], nothing),
        },
    }
    for axes, (panel, series) in zip(canvas.axes, expected.items(), strict=True):
        assert axes.get_title(loc="left") == panel
        bars = iter([part for part in axes.collections if isinstance(part, LineCollection)])
        for name, (x, y, error) in series.items():
            same(lines(axes)[name], x, y)
            rows = table[(table["panel"] == panel) & (table["series"] == name)]
            same((rows["x"], rows["y"], rows["y standard error"]), x, y, error)
            assert set(rows["x is"]) == {axes.get_xlabel()}
            assert set(rows["y is"]) == {axes.get_ylabel().replace("\n", " ")}
            if not np.isnan(error).any():
                ends = np.array(next(bars).get_segments())
                same((ends[:, 0, 1], ends[:, 1, 1]), y, np.add(y, 2 * np.array(error)))
        assert next(bars, None) is None
    assert len(table) == 2 + 2 + 12 + 6
    assert canvas.get_suptitle() == "Tiny theory: 1 of 2 checks hold"


# Their files.


@pytest.mark.slow
def test_another_process_with_other_settings_of_matplotlib_writes_the_same_bytes(project, drawn, tmp_path):
    for name in FIGURES:
        drawn(name)
    out = {path: path.read_bytes() for path in project.glob("results/*/figures/*.*")}
    assert {path.suffix for path in out} == {".png", ".svg", ".csv"}
    assert len(out) == 3 * len(FIGURES)
    for path in out:
        path.unlink()
    (tmp_path / "matplotlibrc").write_text(
        "font.size: 20\naxes.facecolor: red\nxtick.major.size: 15\nsvg.hashsalt: other\n"
    )
    env = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    calls = [["figure", *name.split("/")] for name in FIGURES]
    code = f"from gcflow.cli import main\nfor call in {calls}: main(call, standalone_mode=False)"
    subprocess.run([sys.executable, "-c", code], cwd=project, env=environment(env), check=True)
    assert {path: path.read_bytes() for path in project.glob("results/*/figures/*.*")} == out


@pytest.mark.parametrize("name", FIGURES)
def test_a_missing_input_is_named_and_nothing_is_written(tmp_path, name):
    root = prepare_data(write_project(tmp_path, document()), "digits", "mixture2d")
    before = contents(root)
    params = Params(root / "params.yaml")
    with pytest.raises(GcflowError, match=re.escape(f"{root / FIGURES[name]}: no such file")):
        write_figure(params, *name.split("/"))
    assert contents(root) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("digits/convergence", [{"protocol": "classifier", "metric": "classifier-fd"}]),
        ("digits/discrepancy", {"records": [{"estimate": "denoiser", "sigma": 1.0}]}),
        ("digits/discrepancy", []),
        ("digits/transport-cost", {"predictor": {"run": "digits/ic/0"}, "records": [{"coupling": "new"}]}),
        ("digits/transport-cost", {"predictor": {"run": "digits/gone/0"}, "records": []}),
        ("mixture2d/theory", {"curves": {"Theorem 2": {}, "Lemma 1": {}}, "checks": []}),
        ("mixture2d/paths", {"curves": {"Figure 1": {"sigmas": [1.0], "paths": {"a": {"states": [[[0, 0]]]}}}}}),
    ],
)
def test_an_input_of_another_form_is_named(tmp_path, name, content):
    root = write_project(tmp_path, document())
    for seed in (0, 1):
        dump(root / FIGURES[name].replace("seed0", f"seed{seed}"), content)
    before = contents(root)
    with pytest.raises(
        GcflowError, match=re.escape(str(root / FIGURES[name])) + ": not what its stage writes"
    ) as caught:
        write_figure(Params(root / "params.yaml"), *name.split("/"))
    assert "\n" not in str(caught.value)
    assert contents(root) == before


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_samples_of_another_form_are_named(tmp_path, damage):
    root = prepare_data(write_project(tmp_path, document()), "mixture2d")
    path = root / FIGURES["mixture2d/samples"]
    path.parent.mkdir(parents=True)
    if damage is None:
        np.save(path, np.zeros((16, 3)))
    else:
        path.write_bytes(damage)
    with pytest.raises(GcflowError, match=re.escape(f"{path}: not what its stage writes")):
        write_figure(Params(root / "params.yaml"), "mixture2d", "samples")


def test_seeds_that_were_measured_at_other_steps_are_named(tmp_path):
    root = write_project(tmp_path, document())
    files = [root / f"results/digits/ic/seed{seed}/evaluation/metrics.json" for seed in (0, 1)]
    found = metrics(np.random.default_rng(0))
    dump(files[0], found)
    dump(files[1], [record for record in found if record["step"] == STEPS[0]])
    with pytest.raises(GcflowError, match=re.escape(f"{files[1]}: its curve is at other points than {files[0]}")):
        write_figure(Params(root / "params.yaml"), "digits", "convergence")

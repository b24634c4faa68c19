"""`gcflow figure`: pictures from the runs' own files, as PNG and SVG. Most need no torch, so they do not import it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from gcflow.errors import GcflowError
from gcflow.files import atomic_path, read_json
from gcflow.pipeline.drawing import COLOURS, MARKERS, new_figure, tile
from gcflow.pipeline.folders import (
    FIGURE_FORMATS,
    data_folder,
    discrepancy_path,
    results_folder,
    run_folder,
    theory_path,
)
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.schema import Figure
from gcflow.pipeline.table import metric_label, run_metrics

DRAWN_PATHS = 32


def _plain(value: float, _position: int) -> str:
    return f"{value:g}" if f"{value:e}"[0] in "1235" else ""


def convergence(params: Params, dataset: str, figure: Figure) -> Canvas:
    """Frechet distance of one-step EMA samples during training: mean over seeds, and their range."""
    canvas = new_figure(7.2, 3.4)
    axes = canvas.add_subplot()
    entry = params.dataset(dataset)
    metric = ""
    for index, method in enumerate(figure.methods):
        curves = []
        for seed in entry.runs[method].seeds:
            records = run_metrics(params, Run(dataset, method, seed))
            metric = str(records["metric"].iloc[0])
            chosen = records[
                (records["metric"] == metric)
                & (records["weights"] == "ema")
                & (records["network_evaluations"] == records["network_evaluations"].min())
            ]
            curves.append(chosen.groupby("step")["value"].mean())
        steps = curves[0].index.to_numpy()
        values = np.stack([curve.to_numpy() for curve in curves])
        colour = COLOURS[index % len(COLOURS)]
        label = f"{entry.runs[method].label} ({len(curves)} seed{'s' if len(curves) > 1 else ''})"
        marker = MARKERS[index % len(MARKERS)]
        axes.plot(steps, values.mean(0), color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=label)
        if len(curves) > 1:
            axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    for axis_ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis_ticks(FuncFormatter(_plain))
    axes.set_xlabel("training step")
    axes.set_ylabel(metric_label(metric)[0])
    axes.set_title(figure.title, loc="left", fontsize=9)
    canvas.legend(fontsize=8, loc="outside right center")
    return canvas


def samples(params: Params, dataset: str, figure: Figure) -> Canvas:
    """One-step EMA samples of each method's first seed from the same noises, next to real data."""
    from gcflow.data import load_dataset

    entry = params.dataset(dataset)
    real = load_dataset(data_folder(params.root, dataset)).samples
    side = entry.evaluation.grid
    spread = np.linspace(0, len(real) - 1, side**2).round().astype(int)
    panels = {"real data": real[spread].numpy()}
    for method in figure.methods:
        path = run_folder(params.root, Run(dataset, method, entry.runs[method].seeds[0])) / "evaluation" / "samples.npy"
        if not path.exists():
            raise GcflowError(f"{path}: no such file; run gcflow evaluate first")
        panels[entry.runs[method].label] = np.load(path)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    canvas = new_figure(2.1 * columns, 2.3 * rows + 0.3)
    for index, (label, values) in enumerate(panels.items()):
        axes = canvas.add_subplot(rows, columns, index + 1)
        axes.set_title(label, fontsize=8)
        if values.ndim == 4:
            axes.imshow(tile(values, side), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.axis("off")
        else:
            axes.scatter(values[:, 0], values[:, 1], s=4, color=COLOURS[index % len(COLOURS)])
            reach = 1.2 * np.abs(panels["real data"]).max()
            axes.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
    canvas.suptitle(figure.title, fontsize=9)
    return canvas


def transport(params: Params, dataset: str, figure: Figure) -> Canvas:
    """Transport cost of IC, of OT per batch size, and of GC against the noise level."""
    document = read_json(results_folder(params.root, dataset) / "transport.json")
    records = document["records"]
    canvas = new_figure(7.2, 3.4)
    axes = canvas.add_subplot()
    labels = {
        "gc": f"GC, {params.dataset(dataset).runs[document['predictor']['run'].split('/')[1]].label} as predictor",
        "gc-exact": "GC, exact flow of the data",
    }
    for index, (coupling, label) in enumerate(labels.items()):
        rows = [r for r in records if r["coupling"] == coupling]
        sigmas, costs = [r["sigma"] for r in rows], np.array([r["cost"] for r in rows])
        errors = np.array([r["standard_error"] for r in rows])
        axes.plot(sigmas, costs, color=COLOURS[index], marker=MARKERS[index], markersize=3.5, label=label)
        axes.fill_between(sigmas, costs - 2 * errors, costs + 2 * errors, color=COLOURS[index], alpha=0.15, linewidth=0)
    flat = [r for r in records if r["coupling"] in ("ic", "ot")]
    for index, record in enumerate(flat):
        label = "IC" if record["coupling"] == "ic" else f"OT in batches of {record['batch']}"
        style = (0, (1 + 2 * index, 1 + index / 2))
        axes.axhline(record["cost"], color=COLOURS[2 + index % 5], linestyle=style, linewidth=1.3, label=label)
    if "closed_form" in document:
        exact = document["closed_form"]
        axes.plot(exact["sigmas"], exact["generator_augmented"], "k:", linewidth=1.6, label="GC, closed form", zorder=4)
        axes.axhline(exact["wasserstein"], color="black", linewidth=0.8, label="W₂² to the noise, exact limit")
    axes.set_xscale("log")
    axes.set_xlabel("noise level σ")
    axes.set_ylabel("transport cost E‖x − z‖²")
    axes.set_title(figure.title, loc="left", fontsize=9)
    canvas.legend(fontsize=8, loc="outside right center")
    return canvas


def _draw_paths(axes: Axes, paths: np.ndarray, title: str, colour: str) -> None:
    axes.plot(paths[..., 0], paths[..., 1], color=colour, linewidth=0.8, alpha=0.8)
    axes.scatter(paths[0, :, 0], paths[0, :, 1], s=8, color="#888888", zorder=3)
    axes.scatter(paths[-1, :, 0], paths[-1, :, 1], s=8, color="black", zorder=3)
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=8)


def trajectories(params: Params, dataset: str, figure: Figure) -> Canvas:
    """Independent pairs, PF-ODE and GC flow of a mixture from the same starts, with straightness and crossings."""
    document = read_json(theory_path(params.root, dataset))["curves"]["Figure 1"]
    canvas = new_figure(7.2, 3.3)
    for index, (name, content) in enumerate(document["paths"].items()):
        axes = canvas.add_subplot(1, 3, index + 1)
        paths = np.array(content["states"])
        crossed = f"{content['crossing_pairs']} crossings of {paths.shape[1]} paths"
        title = f"{name[0].upper()}{name[1:]}\nstraightness {content['straightness']:.3f}\n{crossed}"
        _draw_paths(axes, paths[:, :DRAWN_PATHS], title, COLOURS[index])
        axes.set_xlabel("x₁")
        if index == 0:
            axes.set_ylabel("x₂")
    canvas.suptitle(figure.title, fontsize=9)
    return canvas


def discrepancy(params: Params, dataset: str, figure: Figure) -> Canvas:
    """Velocity discrepancy of each coupling against the noise level: mean over seeds, their range, and exact values."""
    entry = params.dataset(dataset)
    canvas = new_figure(7.2, 3.4)
    axes = canvas.add_subplot()
    least = math.inf
    styles = {"denoiser": ("-", ""), "exact": (":", ", exact"), "upper-bound": ("--", ", bound by the predictor")}
    for index, method in enumerate(figure.methods):
        runs = [Run(dataset, method, seed) for seed in entry.runs[method].seeds]
        records = [read_json(discrepancy_path(params.root, run))["records"] for run in runs]
        for estimate, (style, suffix) in styles.items():
            curves = [{r["sigma"]: r["value"] for r in rows if r["estimate"] == estimate} for rows in records]
            sigmas = list(curves[0])
            if not sigmas:
                continue
            values = np.array([[curve[sigma] for sigma in sigmas] for curve in curves])
            colour, label = COLOURS[index % len(COLOURS)], f"{entry.runs[method].label}{suffix}"
            marker = MARKERS[index % len(MARKERS)] if estimate == "denoiser" else ""
            axes.plot(sigmas, values.mean(0), style, color=colour, marker=marker, markersize=3.5, label=label)
            if len(curves) > 1:
                axes.fill_between(sigmas, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
            # Below some noise the exact velocity knows each sample: its fall to 0 is not worth most of the axis.
            if estimate != "exact":
                least = min(least, float(values.min()))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=least / 3)
    axes.set_xlabel("noise level σ")
    axes.set_ylabel("velocity discrepancy E‖z − v(x)‖²")
    axes.set_title(figure.title, loc="left", fontsize=9)
    canvas.legend(fontsize=8, loc="outside right center")
    return canvas


def _draw_gaps(axes: Axes, gradients: Axes, curves: dict[str, Any]) -> None:
    """Theorem 1: distance of the scaled gap from its limit, and of the two gradients from each other, against N."""
    distances = {name: curve for name, curve in curves.items() if isinstance(curve, dict)}
    for index, (name, curve) in enumerate(distances.items()):
        values = {axes: np.abs(np.array(curve["ratio"]) - 1), gradients: curve["gradient_difference"]}
        for panel, heights in values.items():
            colour, marker = COLOURS[index], MARKERS[index]
            panel.plot(curves["intervals"], heights, color=colour, marker=marker, markersize=3.5, label=name)
    axes.set_ylabel("|gap / limit − 1|")
    gradients.set_ylabel("|∇CT − ∇CD| / |∇CD|")
    for panel in (axes, gradients):
        panel.set(xscale="log", yscale="log", xlabel="number of intervals N")
        panel.set_title(
            f"Theorem 1, {'losses' if panel is axes else 'gradients'}, T = {curves['horizon']:g}", fontsize=8
        )


def _draw_discrepancies(axes: Axes, curves: dict[str, Any]) -> None:
    """Theorem 2: both discrepancies against t, with closed forms where there are any."""
    for index, (name, key) in enumerate((("IC", "independent"), ("GC", "generator_augmented"))):
        colour, place = COLOURS[4 + index], (curves["sigmas"][-1], curves[key][-1])
        axes.plot(curves["sigmas"], curves[key], color=colour, marker=MARKERS[4 + index], markersize=3.5)
        axes.annotate(name, place, xytext=(-4, 8), textcoords="offset points", color=colour, fontsize=8)
        if "closed_form" in curves:
            axes.plot(curves["sigmas"], curves["closed_form"][name], "k:", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="noise level t", ylabel="R̃(t) = E‖z − v(x)‖²")
    dotted = ", dotted: closed form" if "closed_form" in curves else ""
    axes.set_title(f"Theorem 2{dotted}", fontsize=8)


def _draw_lemma(axes: Axes, curves: dict[str, Any]) -> None:
    """Lemma 1: the derivative of the cost by differences, and the right side."""
    axes.plot(curves["sigmas"], -np.array(curves["derivative"]), "o", color=COLOURS[6], markersize=4)
    axes.plot(curves["sigmas"], -np.array(curves["right_side"]), color=COLOURS[5])
    axes.set(xscale="log", yscale="log", xlabel="noise level t", ylabel="−c′(t)")
    axes.set_title("Lemma 1: differences (points), right side (line)", fontsize=8)


def theory(params: Params, dataset: str, figure: Figure) -> Canvas:
    """The curves behind the theory's checks: Theorem 1 per horizon, Theorem 2, Lemma 1."""
    document = read_json(theory_path(params.root, dataset))
    curves = document["curves"]
    gaps = [curve for name, curve in curves.items() if name.startswith("Theorem 1")]
    canvas = new_figure(7.2, 2.4 * (len(gaps) + 1) + 0.6)
    panels = canvas.subplots(len(gaps) + 1, 2)
    for row, curve in zip(panels, gaps, strict=False):
        _draw_gaps(row[0], row[1], curve)
    _draw_discrepancies(panels[-1][0], curves["Theorem 2"])
    _draw_lemma(panels[-1][1], curves["Lemma 1"])
    held = sum(check["holds"] for check in document["checks"])
    canvas.suptitle(f"{figure.title}: {held} of {len(document['checks'])} checks hold", fontsize=9)
    canvas.legend(*panels[0][0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=2)
    return canvas


KINDS: dict[str, Callable[[Params, str, Figure], Canvas]] = {
    "convergence": convergence,
    "samples": samples,
    "transport": transport,
    "discrepancy": discrepancy,
    "trajectories": trajectories,
    "theory": theory,
}


def write_figure(params: Params, dataset: str, name: str) -> None:
    """Writes results/<dataset>/figures/<name>.{png,svg}.

    Raises:
        GcflowError: no such figure, or a file that it shows is missing.
    """
    figures = params.dataset(dataset).figures
    if name not in figures:
        raise GcflowError(f"{params.path}: datasets.{dataset}.figures has no {name!r}; known: {', '.join(figures)}")
    canvas = KINDS[figures[name].kind](params, dataset, figures[name])
    for suffix in FIGURE_FORMATS:
        with atomic_path(results_folder(params.root, dataset) / "figures" / f"{name}.{suffix}") as temporary:
            canvas.savefig(temporary, format=suffix, metadata={"Date": None} if suffix == "svg" else None)

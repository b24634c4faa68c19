"""`gcflow figure`: pictures from the runs' own files, as PNG and SVG. Most need no torch, so they do not import it."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from gcflow.errors import GcflowError
from gcflow.files import atomic_path, read_json
from gcflow.pipeline.drawing import COLOURS, MARKERS, new_figure, tile
from gcflow.pipeline.folders import FIGURE_FORMATS, data_folder, results_folder, run_folder
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.schema import Figure
from gcflow.pipeline.table import metric_label, run_metrics
from gcflow.sources import Mixture2d

TRAJECTORY_START, TRAJECTORY_END, TRAJECTORY_LEVELS = 3.0, 0.05, 31
TRAJECTORIES, QUADRATURE_NODES = 24, 150


def _plain(value: float, _position: int) -> str:
    return f"{value:g}" if f"{value:e}"[0] in "1235" else ""


def convergence(params: Params, dataset: str, figure: Figure) -> Canvas:
    """Frechet distance of one-step EMA samples during training: mean over seeds, and their range."""
    canvas = new_figure(6, 3.6)
    axes = canvas.add_subplot()
    entry = params.dataset(dataset)
    metric = ""
    for index, method in enumerate(figure.methods):
        curves = []
        for seed in entry.runs[method].seeds:
            records = run_metrics(params, Run(dataset, method, seed))
            metric = next(name for name in records["metric"] if name.endswith("-fd"))
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
    axes.legend(fontsize=8)
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
    axes.set_xscale("log")
    axes.set_xlabel("noise level σ")
    axes.set_ylabel("E‖x − z‖²")
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
    import torch

    from gcflow.oracles import solve_ode, velocity
    from gcflow.randomness import generator
    from gcflow.trajectories import GeneratorAugmentedFlow, crossings, straightness

    entry = params.dataset(dataset)
    if not isinstance(entry.data, Mixture2d):
        raise GcflowError(f"{params.path}: datasets.{dataset}: figures of kind trajectories need source mixture2d")
    mixture = entry.data.mixture()
    source = generator(entry.data.seed, "trajectories")
    data, _ = mixture.sample(TRAJECTORIES, source)
    noise = torch.randn(TRAJECTORIES, 2, generator=source, dtype=torch.float64)
    start = data + TRAJECTORY_START * noise
    levels = torch.logspace(
        np.log10(TRAJECTORY_START), np.log10(TRAJECTORY_END), TRAJECTORY_LEVELS, dtype=torch.float64
    ).tolist()

    def field(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return velocity(mixture.denoise, y, sigma)

    lines = torch.stack([data + level * noise for level in levels])
    ode = solve_ode(field, start, TRAJECTORY_START, TRAJECTORY_END, TRAJECTORY_LEVELS - 1)
    flow = GeneratorAugmentedFlow(mixture, entry.process.sigma_min, QUADRATURE_NODES).trajectories(start, levels)
    canvas = new_figure(7.2, 3.1)
    panels = {"Independent pairs": lines, "PF-ODE": ode, "Flow of GC": flow}
    for index, (name, states) in enumerate(panels.items()):
        axes = canvas.add_subplot(1, 3, index + 1)
        title = f"{name}\nstraightness {straightness(states):.3f}, {crossings(states)} crossings"
        _draw_paths(axes, states.numpy(), title, COLOURS[index])
    canvas.suptitle(figure.title, fontsize=9)
    return canvas


KINDS: dict[str, Callable[[Params, str, Figure], Canvas]] = {
    "convergence": convergence,
    "samples": samples,
    "transport": transport,
    "trajectories": trajectories,
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

"""Figures of samples and of trajectories, each with the table of what is where."""

import hashlib
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd

from gcflow.errors import GcflowError
from gcflow.files import read_json
from gcflow.pipeline.drawing.canvas import PAGE_WIDTH, Drawing, new_figure
from gcflow.pipeline.drawing.image_files import tile
from gcflow.pipeline.drawing.inputs import expected
from gcflow.pipeline.drawing.looks import BLACK, GC, GREY, IC, looks, other_looks
from gcflow.pipeline.folders import data_folder, run_folder, theory_path
from gcflow.pipeline.params import Params, Run
from gcflow.pipeline.schema import Figure

LARGEST_PANEL = 1.8
MOST_COLUMNS = 4
TITLE_LINE = 0.16
DRAWN_PATHS = 32
AXES = ("x₁ (data units)", "x₂ (data units)")
POINT = ("x1 [data units]", "x2 [data units]")
REAL = "real data"


def _grid(params: Params, run: Run, shape: tuple[int, ...], count: int) -> tuple[Path, np.ndarray]:
    path = run_folder(params.root, run) / "evaluation" / "samples.npy"
    if not path.exists():
        raise GcflowError(f"{path}: no such file; run gcflow evaluate first")
    with expected(path):
        values = np.load(path)
        if values.shape[1:] != shape or len(values) > count:
            raise ValueError(f"{list(values.shape)}, not up to {[count, *shape]}")
    return path, values


def _sample_rows(panel: str, file: Path, indices: np.ndarray, values: np.ndarray, side: int) -> pd.DataFrame:
    """Where each sample is drawn from: images by their hash, points by their coordinates."""
    rows = pd.DataFrame({"panel": panel, "file": file.as_posix(), "index in file": indices[: len(values)]})
    if values.ndim == 2:
        return rows.assign(**dict(zip(POINT, values.T, strict=True)))
    places = np.arange(len(values))
    hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in values]
    located = rows.assign(row=places // side, column=places % side)
    return located.assign(**{"sha256 of pixels": hashes})


def samples(params: Params, dataset: str, figure: Figure) -> Drawing:
    """EMA samples of each method's first seed from the same noises, next to real data."""
    from gcflow.data import load_dataset

    entry, folder = params.dataset(dataset), data_folder(params.root, dataset)
    real, side = load_dataset(folder).samples, entry.evaluation.grid
    spread = np.linspace(0, len(real) - 1, side**2).round().astype(int)
    panels = {REAL: (folder / "samples.npy", spread, real[spread].numpy())}
    for method in figure.methods:
        path, values = _grid(params, Run(dataset, method, entry.runs[method].seeds[0]), real.shape[1:], side**2)
        panels[method] = (path, np.arange(side**2), values)
    labels = {REAL: REAL} | {method: entry.runs[method].label for method in figure.methods}
    reach = 1.2 * float(np.abs(panels[REAL][2]).max())

    rows = -(-len(panels) // MOST_COLUMNS)
    columns = -(-len(panels) // rows)
    width = min(PAGE_WIDTH / columns, LARGEST_PANEL)
    titles = {panel: textwrap.fill(label, int(13 * width)) for panel, label in labels.items()}
    points = real.ndim == 2
    lines = 1 + max(title.count("\n") for title in titles.values())
    canvas = new_figure(columns * width, rows * (width + lines * TITLE_LINE) + 2 * TITLE_LINE)
    colours = {REAL: GREY} | {method: look.colour for method, look in looks(figure.methods).items()}
    grid = canvas.subplots(rows, columns, sharex=points, sharey=points, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (panel, (_, _, values)) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(titles[panel], fontsize=8, loc="center")
        if points:
            axes.scatter(values[:, 0], values[:, 1], s=4, color=colours[panel])
            axes.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
            axes.set(xlabel=AXES[0], ylabel=AXES[1])
            axes.label_outer()
        else:
            axes.imshow(tile(values, side), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_axis_off()
    canvas.suptitle("\n".join(textwrap.wrap(figure.title, int(14 * columns * width))))
    parts = [
        _sample_rows(labels[panel], path.relative_to(params.root), indices, values, side)
        for panel, (path, indices, values) in panels.items()
    ]
    return Drawing(canvas, pd.concat(parts))


def trajectories(params: Params, dataset: str, figure: Figure) -> Drawing:
    """Pairs and flows of the same data and noises on a mixture, with straightness and crossings."""
    path = theory_path(params.root, dataset)
    document = read_json(path)
    with expected(path):
        curves = document["curves"]["Figure 1"]
        sigmas, flows = np.array(curves["sigmas"]), curves["paths"]
        states = {name: np.array(content["states"]) for name, content in flows.items()}
        titles = {
            name: f"{name[0].upper()}{name[1:]}\nstraightness {content['straightness']:.3f}\n"
            f"{content['crossing_pairs']} pairs of {states[name].shape[1]} paths cross"
            for name, content in flows.items()
        }
        parts = [_path_rows(name, sigmas, paths[:, :DRAWN_PATHS]) for name, paths in states.items()]
    colours = {"independent pairs": IC.colour, "PF-ODE": next(other_looks()).colour}
    colours |= dict.fromkeys(("trained GC pairs", "GC flow"), GC.colour)
    across, down = np.ptp(np.concatenate([paths[:, :DRAWN_PATHS] for paths in states.values()], axis=1), axis=(0, 1))
    canvas = new_figure(PAGE_WIDTH, (PAGE_WIDTH - 0.9) / len(states) * down / across + 1.1)
    grid = canvas.subplots(1, len(states), sharex=True, sharey=True, squeeze=False)
    for axes, (name, paths) in zip(grid.flat, states.items(), strict=True):
        drawn = paths[:, :DRAWN_PATHS]
        axes.plot(drawn[..., 0], drawn[..., 1], color=colours.get(name, BLACK), linewidth=0.8, alpha=0.8)
        for ends, colour in ((drawn[0], GREY), (drawn[-1], BLACK)):
            axes.scatter(ends[:, 0], ends[:, 1], s=7, color=colour, zorder=3)
        axes.set(aspect="equal", xlabel=AXES[0], ylabel=AXES[1])
        axes.label_outer()
        axes.set_title(titles[name], fontsize=8, loc="center")
    canvas.suptitle(figure.title)
    return Drawing(canvas, pd.concat(parts))


def _path_rows(flow: str, sigmas: np.ndarray, paths: np.ndarray) -> pd.DataFrame:
    """A row per noise level of each path; paths: [levels, B, 2]."""
    levels, count, _ = paths.shape
    if levels != len(sigmas):
        raise ValueError(f"{levels} states at {len(sigmas)} noise levels")
    flat = paths.swapaxes(0, 1).reshape(-1, 2)
    return pd.DataFrame(
        {
            "flow": flow,
            "path": np.repeat(np.arange(count), levels),
            "sigma [data units]": np.tile(sigmas, count),
            **dict(zip(POINT, flat.T, strict=True)),
        }
    )

"""Pairs and flows of the same data and noises on a mixture, with straightness and crossings."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gcflow.files import json_document
from gcflow.pipeline.drawing.canvas import PAGE_WIDTH, PLANE, POINT, Drawing, Row, new_figure
from gcflow.pipeline.drawing.looks import BLACK, GC, GREY, IC, other_looks
from gcflow.pipeline.figures import Caption, FigureKind, Inputs
from gcflow.pipeline.folders import theory_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.schema import DatasetEntry, Figure

if TYPE_CHECKING:
    import numpy as np


def mistakes(entry: DatasetEntry, _name: str) -> Iterator[tuple[str, str]]:
    if entry.theory and not entry.theory.paths:
        yield "theory.paths", "is 0, but a figure of kind trajectories draws them"


def inputs(_params: Params, dataset: str, _figure: Figure) -> Inputs:
    return Inputs([theory_path(Path(), dataset)])


def _path_rows(flow: str, sigmas: "np.ndarray", paths: "np.ndarray") -> list[Row]:
    """A row per noise level of each path; paths: [levels, B, 2]."""
    return [
        {"flow": flow, "path": number, "sigma [data units]": sigma, **dict(zip(POINT, state, strict=True))}
        for number, path in enumerate(paths.swapaxes(0, 1))
        for sigma, state in zip(sigmas, path, strict=True)
    ]


def _half_way(paths: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
    """Where each path has half of its length behind it, and its direction there; paths: [levels, B, 2]."""
    import numpy as np

    steps = np.diff(paths, axis=0)
    lengths = np.linalg.norm(steps, axis=2).cumsum(axis=0)
    at = (lengths < lengths[-1] / 2).sum(axis=0)
    which = np.arange(paths.shape[1])
    ahead = steps[at, which]
    return paths[at, which] + ahead / 2, ahead / np.linalg.norm(ahead, axis=1, keepdims=True)


def draw(params: Params, dataset: str, figure: Figure) -> Drawing:
    import numpy as np

    with json_document(theory_path(params.root, dataset)) as document:
        curves = document["curves"]["Figure 1"]
        sigmas, flows = np.array(curves["sigmas"]), curves["paths"]
        states = {name: np.array(content["states"]) for name, content in flows.items()}
        titles = {
            name: f"{name[0].upper()}{name[1:]}\nstraightness {content['straightness']:.3f}\n"
            f"{content['crossing_pairs']} pairs of {states[name].shape[1]} paths cross"
            for name, content in flows.items()
        }
        rows = [row for name, paths in states.items() for row in _path_rows(name, sigmas, paths)]
    colours = {"independent pairs": IC.colour, "PF-ODE": next(other_looks()).colour}
    colours |= dict.fromkeys(("trained GC pairs", "GC flow"), GC.colour)
    across, down = np.ptp(np.concatenate([*states.values()], axis=1), axis=(0, 1))
    canvas = new_figure(PAGE_WIDTH, (PAGE_WIDTH - 0.9) / len(states) * down / across + 1.1)
    grid = canvas.subplots(1, len(states), sharex=True, sharey=True, squeeze=False)
    for axes, (name, paths) in zip(grid.flat, states.items(), strict=True):
        colour = colours.get(name, BLACK)
        axes.plot(paths[..., 0], paths[..., 1], color=colour, linewidth=0.6, alpha=0.7)
        for ends, shade in ((paths[0], GREY), (paths[-1], BLACK)):
            axes.scatter(ends[:, 0], ends[:, 1], s=4, color=shade, linewidth=0, zorder=3)
        # Half-way, heads alone.
        middle, ahead = _half_way(paths)
        axes.quiver(*middle.T, *ahead.T, angles="xy", pivot="mid", color=colour, scale=40, width=0.01, headaxislength=4)
        axes.set(aspect="equal", **PLANE)
        axes.label_outer()
        axes.set_title(titles[name], fontsize=8, loc="center")
    canvas.suptitle(figure.title)
    return Drawing(canvas, rows)


KIND = FigureKind(
    inputs,
    draw,
    Caption(
        "Straight paths that cross little are easy to follow in one step. Independent pairs are straight and cross "
        "most; compare how much straightness the ODE of the probability flow and the generator-augmented flow give up "
        "to cross less. Straightness is chord over arc, 1 for straight lines; two paths that meet in the plane count "
        "once.",
        "From the same data and noises on a distribution whose velocity is known. Both flows have the same starts and "
        "are integrated in float64 by gcflow theory, the generator-augmented one with exact endpoints; trained GC "
        "pairs, where there are some, have those that the EMA of a trained model predicts at the largest noise. The "
        "paths that are counted are those that are drawn.",
    ),
    block="theory",
    mistakes=mistakes,
)

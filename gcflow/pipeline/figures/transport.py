"""Transport cost of independent pairs, of OT per batch size, and of GC against the noise level."""

from itertools import groupby
from pathlib import Path
from typing import Any

from gcflow.files import json_document
from gcflow.pipeline.drawing.canvas import Drawing, Row, draw_curve, legend_below, one_panel, plain_ticks
from gcflow.pipeline.drawing.curves import noise_units, renamed
from gcflow.pipeline.drawing.looks import BLACK, DASHED, DOTTED, GC, IC, OT, Line, Look
from gcflow.pipeline.figures import Caption, FigureKind, Inputs
from gcflow.pipeline.folders import results_folder
from gcflow.pipeline.params import Params
from gcflow.pipeline.schema import Figure

ERRORS = 2
BANDS = f"bands: ± {ERRORS} standard errors over pairs (OT: batches); of IC's cost, of others' difference from it"
COLUMNS = {
    "coupling": "coupling",
    "label": "label",
    "batch": "batch [pairs]",
    "sigma": "sigma",
    "cost": "cost drawn: IC's minus saving, or exact [squared data units]",
    "saving": "saving against IC on the same pairs [squared data units]",
    "saving_standard_error": "saving standard error [squared data units]",
    "pairs": "pairs [count]",
    "own_cost": "cost of these pairs alone [squared data units]",
    "own_error": "cost standard error [squared data units]",
}
# Larger batches have longer dashes.
OT_LINES: tuple[Line, ...] = ((0, (1, 1)), (0, (3, 1.5)), (0, (6, 1.5)), (0, (10, 2)), (0, (10, 2, 2, 2)))


def _path(root: Path, dataset: str) -> Path:
    return results_folder(root, dataset) / "transport.json"


def inputs(params: Params, dataset: str, _figure: Figure) -> Inputs:
    settings = params.dataset(dataset).transport
    return Inputs([_path(Path(), dataset)], (settings.predictor.method,) if settings else ())


def _rows(document: dict[str, Any], predictor: str) -> list[Row]:
    """A row per point, and one per constant, which has no sigma; curves in the order of the legend.

    cost: IC's over all pairs, minus what the coupling saves against IC on its own pairs. Whatever these happen to cost
    cancels, so that a curve of few pairs stands where it belongs among those of many.
    """
    names = {
        "ic": "IC",
        "ot": "OT in batches of {batch}",
        "gc": f"GC, {predictor} as predictor",
        "gc-exact": "GC, exact flow of the data",
    }
    order, samples, rows = [*names], document["samples"], list[Row]()
    (independent,) = (record for record in document["records"] if record["coupling"] == "ic")
    for record in sorted(document["records"], key=lambda record: order.index(record["coupling"])):
        pairs, label = samples[record["coupling"]], names[record["coupling"]].format(**record)
        if pairs < samples["ic"]:
            label += f" ({pairs} of {samples['ic']} pairs)"
        measured = {"pairs": pairs, "own_cost": record["cost"], "own_error": record["standard_error"]}
        saving = 0.0 if record is independent else record["saving"]
        rows.append({**record, **measured, "label": label, "cost": independent["cost"] - saving})
    if "closed_form" in document:
        exact, about = document["closed_form"], {"coupling": "gc-closed-form", "label": "GC, closed form"}
        points = zip(exact["sigmas"], exact["generator_augmented"], strict=True)
        rows += [{**about, "sigma": sigma, "cost": cost} for sigma, cost in points]
        limit = "W₂² between data and noise, exact limit"
        rows.append({"coupling": "wasserstein", "label": limit, "cost": exact["wasserstein"]})
    return rows


def draw(params: Params, dataset: str, figure: Figure) -> Drawing:
    import numpy as np

    units = noise_units(params, dataset)
    with json_document(_path(params.root, dataset)) as document:
        predictor = document["predictor"]["run"].split("/")[1]
        rows = _rows(document, params.dataset(dataset).runs[predictor].label)

    canvas, axes = one_panel(figure.title)
    looks = {
        "ic": IC,
        "ot": OT,
        "gc": GC,
        "gc-exact": Look(GC.colour, GC.marker, DASHED, filled=False),
        "gc-closed-form": Look(BLACK, "", DOTTED),
        "wasserstein": Look(BLACK, ""),
    }
    batches = iter(OT_LINES * len(rows))
    for label, group in groupby(rows, key=lambda row: str(row["label"])):
        own = list(group)
        coupling, name = own[0]["coupling"], "own_error" if own[0]["coupling"] == "ic" else "saving_standard_error"
        look, error = looks[coupling], ERRORS * np.array([row.get(name, np.nan) for row in own])
        if "sigma" in own[0]:
            draw_curve(axes, look, [row["sigma"] for row in own], [row["cost"] for row in own], label, error)
            continue
        cost, line = own[0]["cost"], next(batches) if coupling == "ot" else look.line
        axes.axhline(cost, color=look.colour, linestyle=line, label=label)
        if np.isfinite(error[0]):
            axes.axhspan(cost - error[0], cost + error[0], color=look.colour, alpha=0.18, linewidth=0)
    axes.set_xscale("log")
    plain_ticks(axes, "x")
    axes.set_xlabel(f"noise level σ ({units.axis})")
    axes.set_ylabel("transport cost E‖x − z‖²\n(squared data units)")
    legend_below(canvas, axes, BANDS)
    return Drawing(canvas, renamed(rows, COLUMNS | {"sigma": f"sigma [{units.column}]"}))


KIND = FigureKind(
    inputs,
    draw,
    Caption(
        "What it costs to carry data to noise along each coupling's pairs; lower is better. By the corollaries of "
        "Lemma 1, the cost of generator-augmented pairs of the exact flow begins at that of independent ones and falls "
        "at first, and again where the noise is large; the paper finds it below optimal transport in batches from some "
        "noise on. A trained predictor need not follow.",
        "Monte-Carlo estimates of E‖x − z‖² over pairs: each curve is the cost of independent pairs minus what its "
        "coupling saves against them on the same data and noises. The exact flow takes many steps, so it may have the "
        "first of the pairs alone; its name says how many. Endpoints lie at σ_min and still hold σ_min z, which by "
        "itself saves about 2 σ_min per dimension.",
    ),
    block="transport",
)

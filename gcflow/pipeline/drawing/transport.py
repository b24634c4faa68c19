"""The figure of transport costs: of independent pairs, of OT per batch size, of GC against the noise level."""

from typing import Any

import pandas as pd

from gcflow.files import read_json
from gcflow.pipeline.drawing.canvas import Drawing, draw_curve, legend_below, one_panel, plain_ticks
from gcflow.pipeline.drawing.inputs import expected, noise_units
from gcflow.pipeline.drawing.looks import BLACK, DASHED, DOTTED, GC, IC, OT, Line, Look
from gcflow.pipeline.folders import results_folder
from gcflow.pipeline.params import Params
from gcflow.pipeline.schema import Figure

ERRORS = 2
BANDS = f"bands: ± {ERRORS} standard errors over pairs, for OT over batches"
# Larger batches have longer dashes.
OT_LINES: tuple[Line, ...] = ((0, (1, 1)), (0, (3, 1.5)), (0, (6, 1.5)), (0, (10, 2)), (0, (10, 2, 2, 2)))


def _rows(document: dict[str, Any], predictor: str) -> pd.DataFrame:
    """A row per point, and one per constant, which has no sigma; curves in the order of the legend."""
    names = {
        "ic": "IC",
        "ot": "OT in batches of {batch}",
        "gc": f"GC, {predictor} as predictor",
        "gc-exact": "GC, exact flow of the data",
    }
    order = [*names]
    rows = [
        {"label": names[record["coupling"]].format(**record), **record}
        for record in sorted(document["records"], key=lambda record: order.index(record["coupling"]))
    ]
    if "closed_form" in document:
        exact, about = document["closed_form"], {"coupling": "gc-closed-form", "label": "GC, closed form"}
        points = zip(exact["sigmas"], exact["generator_augmented"], strict=True)
        rows += [{**about, "sigma": sigma, "cost": cost} for sigma, cost in points]
        limit = "W₂² between data and noise, exact limit"
        rows.append({"coupling": "wasserstein", "label": limit, "cost": exact["wasserstein"]})
    columns = ["coupling", "label", "batch", "sigma", "cost", "standard_error"]
    return pd.DataFrame(rows).reindex(columns=columns).astype({"batch": "Int64"})


def transport(params: Params, dataset: str, figure: Figure) -> Drawing:
    """Transport cost of IC, of OT per batch size, and of GC against the noise level."""
    path = results_folder(params.root, dataset) / "transport.json"
    document, units = read_json(path), noise_units(params, dataset)
    with expected(path):
        predictor = document["predictor"]["run"].split("/")[1]
        data = _rows(document, params.dataset(dataset).runs[predictor].label)

    canvas, axes = one_panel(figure.title)
    looks = {
        "ic": IC,
        "ot": OT,
        "gc": GC,
        "gc-exact": Look(GC.colour, GC.marker, DASHED, filled=False),
        "gc-closed-form": Look(BLACK, "", DOTTED),
        "wasserstein": Look(BLACK, ""),
    }
    batches = iter(OT_LINES * len(data))
    for label, rows in data.groupby("label", sort=False):
        coupling = str(rows["coupling"].iloc[0])
        look, error = looks[coupling], ERRORS * rows["standard_error"]
        if rows["sigma"].notna().all():
            draw_curve(axes, look, rows["sigma"], rows["cost"], str(label), error)
            continue
        cost, line = rows["cost"].iloc[0], next(batches) if coupling == "ot" else look.line
        axes.axhline(cost, color=look.colour, linestyle=line, label=label)
        if error.notna().all():
            axes.axhspan(cost - error.iloc[0], cost + error.iloc[0], color=look.colour, alpha=0.18, linewidth=0)
    axes.set_xscale("log")
    plain_ticks(axes, "x")
    axes.set_xlabel(f"noise level σ ({units.axis})")
    axes.set_ylabel("transport cost E‖x − z‖²\n(squared data units)")
    legend_below(canvas, axes, BANDS)
    columns = {
        "sigma": f"sigma [{units.column}]",
        "cost": "cost [squared data units]",
        "standard_error": "standard error [squared data units]",
        "batch": "batch [pairs]",
    }
    return Drawing(canvas, data.rename(columns=columns))

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


def _rows(document: dict[str, Any], predictor: str) -> pd.DataFrame:
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
    order, samples, rows = [*names], document["samples"], []
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
    return pd.DataFrame(rows).reindex(columns=[*COLUMNS]).astype({"batch": "Int64", "pairs": "Int64"})


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
        look, error = looks[coupling], ERRORS * rows["own_error" if coupling == "ic" else "saving_standard_error"]
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
    return Drawing(canvas, data.rename(columns=COLUMNS | {"sigma": f"sigma [{units.column}]"}))

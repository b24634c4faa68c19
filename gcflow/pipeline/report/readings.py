"""What a figure of curves shows at its right end, in words: read off the table that goes with it."""

import io

import pandas as pd

from gcflow.pipeline.report.words import number

STEP = "training step"
NOISE = "sigma"


def right_end(table: str) -> str:
    """The order of curves at the last training step or the largest noise level, lowest first.

    Args:
        table: a figure's CSV with a column `label`, one of training steps or noise levels (empty where a curve is
            constant), and its values in the column after that.
    """
    rows = pd.read_csv(io.StringIO(table))
    place = next(index for index, name in enumerate(rows.columns) if name.startswith((STEP, NOISE)))
    x, value = rows.columns[place], rows.columns[place + 1]
    last = rows[x].max()
    ends = rows[(rows[x] == last) | rows[x].isna()].sort_values(value, kind="stable")
    where = f"step {number(last, 9)}" if x.startswith(STEP) else f"σ = {number(last)}"
    found = ", ".join(f"{label} {number(end, 3)}" for label, end in zip(ends["label"], ends[value], strict=True))
    return f"At {where}, from low to high: {found}."

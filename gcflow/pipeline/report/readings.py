"""What a figure of curves shows at its right end, in words: read off the table that goes with it."""

import io

import pandas as pd

from gcflow.readable import number

STEP = "training step"
NOISE = "sigma"


def right_end(table: str) -> str:
    """The order of curves at their last training step or largest noise level, lowest first.

    Args:
        table: a figure's CSV with a column `label`, one of training steps or noise levels (empty where a curve is
            constant), and its values in the column after that.
    """
    rows = pd.read_csv(io.StringIO(table), keep_default_na=False, na_values=[""])
    place = next(index for index, name in enumerate(rows.columns) if name.startswith((STEP, NOISE)))
    x, value = rows.columns[place], rows.columns[place + 1]
    last = rows.groupby("label")[x].transform("max")
    ends = rows[(rows[x] == last) | rows[x].isna()].sort_values(value, kind="stable")
    trained = x.startswith(STEP)
    if last.nunique() > 1:
        where = "its last step" if trained else "its largest σ"
    else:
        where = f"step {number(last.max(), 9)}" if trained else f"σ = {number(last.max())}"
    found = "; ".join(f"{label} {number(end, 3)}" for label, end in zip(ends["label"], ends[value], strict=True))
    return f"{'Each at' if last.nunique() > 1 else 'At'} {where}, from low to high: {found}."

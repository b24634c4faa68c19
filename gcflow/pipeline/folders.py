"""Where everything lies, relative to the project's root. The one place that knows folder names."""

from pathlib import Path

from gcflow.pipeline.features import KINDS
from gcflow.pipeline.params import Run

TABLE_FORMATS = ("json", "md", "csv", "tex")
DATA_FILES = ("manifest.json", "samples.npy", "labels.npy", "held_out.npy")
FIGURE_FORMATS = ("png", "svg", "csv")
CLAIMS_FORMATS = ("json", "md", "png", "svg")
COURSE_FORMATS = ("png", "svg")
DISCREPANCY = "discrepancy.json"


def data_folder(root: Path, dataset: str) -> Path:
    """Prepared arrays and their manifest."""
    return root / "data" / dataset


def results_folder(root: Path, dataset: str) -> Path:
    """Everything computed on a data set."""
    return root / "results" / dataset


def extractor_path(root: Path, dataset: str, kind: str) -> Path:
    """The network in whose features samples are compared, of a kind that has one."""
    return results_folder(root, dataset) / "features" / f"{kind}.{KINDS[kind].network}"


def reference_path(root: Path, dataset: str, protocol: str) -> Path:
    """Features of the real data, or their statistics, under one protocol."""
    return results_folder(root, dataset) / "features" / f"reference-{protocol}.safetensors"


def pretrained_path(root: Path, name: str) -> Path:
    """Weights of a public model."""
    return root / "checkpoints" / f"{name}.safetensors"


def run_folder(root: Path, run: Run) -> Path:
    """The folder of a run."""
    return results_folder(root, run.dataset) / run.method / f"seed{run.seed}"


def end_path(root: Path, run: Run) -> Path:
    """How the last job of a run ended (`gcflow.pipeline.job`)."""
    return run_folder(root, run) / "state" / "end.json"


def tracking_lock(root: Path) -> Path:
    """Lock of the processes that send to MLflow: two at once would make two MLflow runs of one of ours."""
    return root / "results" / "logs" / "tracking"


def figure_path(root: Path, dataset: str, name: str, suffix: str) -> Path:
    """A figure, in one of FIGURE_FORMATS."""
    return results_folder(root, dataset) / "figures" / f"{name}.{suffix}"


def claims_path(root: Path, suffix: str) -> Path:
    """The ledger of claims over all data sets, in one of CLAIMS_FORMATS."""
    return root / "results" / f"claims.{suffix}"


def course_path(root: Path, suffix: str) -> Path:
    """The claims' effects against the number of seeds, as png or svg."""
    return root / "results" / f"claims-course.{suffix}"


def evidence_path(root: Path, dataset: str) -> Path:
    """What decides the claims on a data set, of all seeds: kept with the code, since it is small."""
    return root / "docs" / "evidence" / f"{dataset}.jsonl"


def rounds_path(root: Path) -> Path:
    """How the last round ended that looked at the seeds of seeds.yaml."""
    return root / "results" / "decided.json"


def report_path(root: Path) -> Path:
    """Everything that was measured, on one page."""
    return root / "results" / "report.html"


def snapshot(folder: Path, step: int) -> Path:
    """Weights of a run at a snapshot step."""
    return folder / "snapshots" / f"{step:08d}.safetensors"


def grid_path(folder: Path, step: int) -> Path:
    """A run's grid of samples at a snapshot step."""
    return folder / "evaluation" / "grids" / f"{step:08d}.png"


def summary_path(folder: Path) -> Path:
    """The few final numbers of a run, for `dvc metrics`."""
    return folder / "evaluation" / "summary.json"


def curve_path(folder: Path, name: str) -> Path:
    """A curve of a run during training, `loss` or `metrics`, for `dvc plots`."""
    return folder / "evaluation" / "curves" / f"{name}.csv"


def theory_path(root: Path, dataset: str) -> Path:
    """Checks of the paper's theory on a data set."""
    return results_folder(root, dataset) / "theory.json"


def discrepancy_path(root: Path, run: Run) -> Path:
    """Velocity discrepancy of a denoiser's coupling."""
    return run_folder(root, run) / DISCREPANCY

"""gcflow: consistency models with generator-augmented flows.

The science is in the modules of this package and knows nothing of folders, Snakemake, DVC or MLflow; `gcflow.pipeline`
holds the stages, `gcflow.cli` the command line. `import gcflow` is instant: a module such as `gcflow.couplings` is
imported when it is first named. docs/library.md says what is where.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gcflow import config as config
    from gcflow import couplings as couplings
    from gcflow import data as data
    from gcflow import distances as distances
    from gcflow import edm as edm
    from gcflow import metrics as metrics
    from gcflow import model as model
    from gcflow import networks as networks
    from gcflow import objectives as objectives
    from gcflow import oracles as oracles
    from gcflow import preconditioning as preconditioning
    from gcflow import preparation as preparation
    from gcflow import register as register
    from gcflow import sampling as sampling
    from gcflow import schedules as schedules
    from gcflow import sources as sources
    from gcflow import theory as theory
    from gcflow import training as training
    from gcflow import weights as weights

__version__ = "0.1.0"

MODULES = (
    "config",
    "couplings",
    "data",
    "distances",
    "edm",
    "metrics",
    "model",
    "networks",
    "objectives",
    "oracles",
    "preconditioning",
    "preparation",
    "register",
    "sampling",
    "schedules",
    "sources",
    "theory",
    "training",
    "weights",
)


def __getattr__(name: str) -> ModuleType:
    if name not in MODULES:
        raise AttributeError(f"module 'gcflow' has no attribute {name!r}")
    return import_module(f"gcflow.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})

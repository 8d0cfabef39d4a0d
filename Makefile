# Every target sets itself up: the first call installs into .venv, later ones see its stamp and go on at once.
.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench clean

VENV := .venv/bin
STAMP := .venv/.hornbook-installed
PACKAGES := platform/hornbook generators classifiers training tests benchmarks
# An artifact store is named by an absolute path, because a Ray job runs in a temporary copy of the working directory.
export HORNBOOK_STORE ?= $(CURDIR)/hornbook-store
# Ray starts console scripts by name: the environment's own must come first.
export PATH := $(CURDIR)/$(VENV):$(PATH)

help: ## Say what can be made.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): constraints/cpu.txt constraints/cpu-requirements.txt constraints/no-deps.txt pyproject.toml scripts/install-cpu
	@scripts/install-cpu

install: $(STAMP) ## Create .venv with every version pinned (no GPU needed).

demo: $(STAMP) ## Generate, filter, mix, pretrain, tune, export, report: the recipe `demo`, on this machine.
	@$(VENV)/hornbook run demo

test: $(STAMP) ## Run all tests (ARGS='-k parts' narrows them).
	@scripts/install-browser
	@$(VENV)/python -m pytest $(ARGS)

lint: $(STAMP) ## Check style, format and types.
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy $(PACKAGES)

format: $(STAMP) ## Rewrite the sources in the one format.
	@$(VENV)/ruff check --fix .
	@$(VENV)/ruff format .

bench: $(STAMP) ## Run the benchmarks at small sizes; benchmarks/README.md says what they measure.
	@for benchmark in benchmarks/generation.py benchmarks/plumbing.py benchmarks/two_workers.py benchmarks/help_time.py benchmarks/checks.py benchmarks/near_duplicates.py benchmarks/extraction.py benchmarks/heuristics.py benchmarks/dedup.py benchmarks/chain.py benchmarks/reading.py benchmarks/scoring.py benchmarks/loader.py benchmarks/packing.py; do echo "== $$benchmark"; $(VENV)/python "$$benchmark" || exit 1; done

clean: ## Delete what was built or cached; keeps .venv and the store.
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find platform generators classifiers training tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

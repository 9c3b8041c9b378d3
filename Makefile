# Every target sets up what it needs: a bare checkout, Python, pip and a package index are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := export runtime bench benchmarks tests examples

.PHONY: setup demo sweep test test-quick check bench bench-export bench-precision bench-families bench-hosts bench-teach bench-gpu docs clean

setup: $(READY)

# torch comes first and alone: a resolver that may choose would fetch another build of it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ort,openvino,rtx,export,hf,video,cli,bench,sign,dev]'
	# Its bounds leave out today's protobuf and ml_dtypes, with which its schema of Triton works.
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt tritonclient
	touch $(READY)

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest

# A file at a time: what its tests share is made once.
test-quick: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

check: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

# Measures speed against every rival; interrupted, it goes on where it stopped.
bench: $(READY)
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.report

# Measures what an export costs, the demo's accuracy, and what each form of the graph gains.
bench-export: $(READY)
	$(BIN)/python -m benchmarks.full_size --runs 5
	$(BIN)/python -m benchmarks.full_size --model RN50
	$(BIN)/python examples/demo.py --record benchmarks/results/demo.json
	$(BIN)/python -m benchmarks.forms
	$(BIN)/python -m benchmarks.points
	$(BIN)/python -m benchmarks.report

# Measures what each precision keeps and costs; the planted outliers take longest, and go on where they stopped.
bench-precision: $(READY)
	$(BIN)/python -m benchmarks.precision_trained
	$(BIN)/python -m benchmarks.precision_speed
	$(BIN)/python -m benchmarks.precision_tools
	$(BIN)/python -m benchmarks.precision_planted
	$(BIN)/python -m benchmarks.report

# Measures one model of each family in every precision, and MobileCLIP against the matmul peak; goes on where it stopped.
bench-families: $(READY)
	$(BIN)/python -m benchmarks.families
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mobileclip
	$(BIN)/python -m benchmarks.report

# Measures raw pixels and every host on photographs of one's own: make bench-hosts PHOTOS=DIR
bench-hosts: $(READY)
	$(if $(PHOTOS),,$(error bench-hosts measures on photographs of yours: make bench-hosts PHOTOS=DIR, a folder of them))
	$(BIN)/python -m benchmarks.pixels --photos $(PHOTOS)
	$(BIN)/python -m benchmarks.hosts $(PHOTOS)
	$(BIN)/python -m benchmarks.throughput $(PHOTOS)
	$(BIN)/python -m benchmarks.report

# Measures what a head as an input costs, and what teaching takes.
bench-teach: $(READY)
	$(BIN)/python -m benchmarks.teach
	$(BIN)/python -m benchmarks.report

# Exports every configuration of open_clip, compares and compiles; interrupted, it goes on where it stopped. Hours; 20 GB of
# memory.
sweep: $(READY)
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.sweep_compile
	$(BIN)/python -m benchmarks.report

# Measures fp16 on a GPU. Needs a Python of your own with CUDA builds: torch, and calipso[ort-gpu,export,cli,bench].
bench-gpu:
	$(PYTHON) -m benchmarks.gpu
	$(PYTHON) -m benchmarks.report

# Writes the numbers of README and docs from benchmarks/results/.
docs: $(READY)
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf $(VENV) demo-output dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

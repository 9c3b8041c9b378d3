# Every target sets up what it needs: a bare checkout, Python, pip and a package index are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := export runtime benchmarks tests examples

.PHONY: setup demo test test-quick check bench docs clean

setup: $(READY)

# torch comes first and alone: a resolver that may choose would fetch another build of it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ort,export,cli,bench,dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/python -m pytest

test-quick: $(READY)
	$(BIN)/python -m pytest -m "not slow"

check: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

# Measures what the README states.
bench: $(READY)
	$(BIN)/python -m benchmarks.full_size --runs 5
	$(BIN)/python -m benchmarks.full_size --model RN50
	$(BIN)/python examples/demo.py --record benchmarks/results/demo.json

# Writes the README's numbers from benchmarks/results/.
docs: $(READY)
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf $(VENV) demo-output dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# Two commands on a machine that has only Python >= 3.11 and a package index: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := rsbdali pipelines recipes bench tests

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/rsbdali train --recipe a3 --demo

test: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest -m "not gpu"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rsbdali needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# A marker file, so that a second `make` skips the install until setup.cfg changes.
$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-test: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

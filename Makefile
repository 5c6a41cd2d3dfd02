# Two commands on a machine that has only Python >= 3.11 and a package index: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := rsbdali pipelines recipes bench tests examples docs/dali_reports

# Two processes, one OpenMP thread each: more only fight for the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" -n 2 --hypothesis-profile=ci

.PHONY: demo check test test-oldest test-newest suite coverage lint dist clean

demo: $(VENV)/.installed
	$(BIN)/rsbdali train --recipe a3 --demo

# While you work: no process, no test that takes a second.
check: $(VENV)/.installed-test lint
	$(PYTEST) -q --durations=3 $(addprefix tests/,$(shell cat tests/fast.txt))

test: $(VENV)/.installed-test lint
	$(PYTEST)

# Apart from `test`, since tracing every line slows the tests down.
coverage: $(VENV)/.installed-test
	$(PYTEST) --cov=rsbdali --cov-report=term:skip-covered

# By hand, each in an environment of its own: all lower bounds of setup.cfg at once; the newest of everything it allows.
test-oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	$(PYTHON) tests/helpers/lower_bounds.py setup.cfg > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python -m pip install --quiet -c $(VENV)-oldest/constraints.txt -e '.[test]'
	$(MAKE) suite VENV=$(VENV)-oldest

test-newest:
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e '.[test]'
	$(MAKE) suite VENV=$(VENV)-newest

suite:
	$(PYTEST)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

# The wheel is made from the sdist, so both hold everything; then it is unpacked alone, and runs from there.
dist: $(VENV)/.installed-test
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target dist/tried dist/*.whl
	cd dist && PYTHONPATH=tried ../$(BIN)/python -c 'import rsbdali; assert "tried" in rsbdali.__file__, rsbdali.__file__'
	cd dist && PYTHONPATH=tried ../$(BIN)/python -m rsbdali --version
	cd dist && PYTHONPATH=tried ../$(BIN)/python -m rsbdali recipe list
	rm -rf dist/tried

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
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage

# Each of these does all of its own set-up on a fresh machine: Python 3.10+, make, a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PLAIN := $(VENV)/.plain
DOCS_VENV := .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed

.PHONY: demo setup test check bench soak docs clean

# The demo needs no tools of development; where they are installed already, that will do.
demo: $(if $(wildcard $(STAMP)),$(STAMP),$(PLAIN))
	$(BIN)/u2pl demo --overwrite

setup: $(STAMP)

# One command with the constraints: torch must be chosen together with everything else, or pip
# takes a newer build with gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

$(PLAIN): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $(PLAIN)

# Worker processes share the cores, so each computes with one thread.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal \
		--cov --cov-report= $(ARGS)
	$(BIN)/python -m coverage report --fail-under=100 \
		--include='src/u2pl/partition.py,src/u2pl/mixing.py,src/u2pl/perturbation.py,src/u2pl/refinement.py,src/u2pl/teacher.py,src/u2pl/contrast/*,src/u2pl/losses/*'

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --doctest-modules src -q -p no:cacheprovider

# What the method costs beside the network, as ratios within one run; minutes on a CPU.
bench: $(STAMP)
	$(BIN)/u2pl bench --out benchmarks/results $(ARGS)

# The long forms of what the tests promise: processes and nodes compared, kills at random moments,
# bad input by the ten thousand. The figures of all of them come last.
soak: $(STAMP)
	$(BIN)/python tests/soak $(ARGS)

# The site, in site/. A virtual environment of its own: it needs neither torch nor u2pl.
docs: $(DOCS_STAMP)
	$(DOCS_VENV)/bin/sphinx-build -M html docs site -W --keep-going -q
	@echo "The site is site/html/README.html"

# pip installs dependency groups from 25.1 on.
$(DOCS_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(DOCS_VENV)/bin/python -m pip install --quiet -c constraints.txt --group docs
	touch $(DOCS_STAMP)

clean:
	rm -rf $(VENV) $(DOCS_VENV) site .pytest_cache .mypy_cache .ruff_cache

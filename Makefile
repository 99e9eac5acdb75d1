PYTHON ?= python3

.PHONY: help install test slow lint types check docs build bench gpu demo ci clean

help:       ## this list
	@sed -n 's/^\([a-z]*\): *## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

install:    ## fsdino from this checkout, with what its tests and tools need
	$(PYTHON) -m pip install -e ".[dev]"

test:       ## the default tests
	$(PYTHON) -m pytest

slow:       ## the tests that only CI runs by itself
	$(PYTHON) -m pytest -m slow

lint:       ## style and format, mended where that can be done safely
	ruff check --fix
	ruff format

types:      ## mypy over fsdino/ and kernels/
	bash .ci/types

check:      ## lint without changes, types, tests
	ruff check
	ruff format --check
	bash .ci/types
	$(PYTHON) -m pytest

docs:       ## the documentation as a site, into site/
	$(PYTHON) -m sphinx -E -W --keep-going -q docs site

build:      ## compile the C++ kernels
	$(PYTHON) -m fsdino build

bench:      ## time the 4D ops on every CPU backend that runs here
	$(PYTHON) -m pytest benchmarks --benchmark-only

gpu:        ## check and time the Triton kernels on the NVIDIA GPU that is here, into runs/gpu/
	PYTHONPATH=. $(PYTHON) benchmarks/gpu_suite.py --out runs/gpu

demo:       ## the demo, into demo/
	$(PYTHON) -m fsdino demo --out demo

ci:         ## all that CI runs, in a fresh virtual environment
	bash .ci/run

clean:      ## remove what builds and tools leave behind
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

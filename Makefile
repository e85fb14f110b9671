# Two commands do everything on a fresh machine with Python 3.11 or later: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: demo test lint fuzz sanitize clean

demo: $(READY)
	$(VENV)/bin/python examples/demo.py

test: $(READY)
	$(VENV)/bin/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	mkdir -p build/mypy && ln -sfn ../../daemon build/mypy/ddct_daemon # mypy does not follow the editable install's mapping
	MYPYPATH=build/mypy $(VENV)/bin/mypy

fuzz: $(READY)
	tests/fuzz/run.sh

sanitize: $(READY)
	tests/fuzz/sanitize.sh

# The native core is built with the package: a change to its sources builds it again.
CORE_SOURCES := $(wildcard ddct_format/native/src/*.[ch]) $(wildcard spec/readers/c/*kernels.[ch])

$(READY): pyproject.toml constraints.txt $(CORE_SOURCES)
	@echo "Setting up $(VENV): some hundreds of MB are fetched, which takes a minute or more."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) demo-output

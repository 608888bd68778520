PYTHON ?= python3
VENV := .venv
TESSERA := $(VENV)/bin/tessera
INSTALLED := $(VENV)/.installed
# The torch this was tested with. Another build (CPU only, another CUDA) is one variable away.
TORCH ?= torch==2.13.0

.PHONY: setup demo test test-docker test-faults test-network test-all lint docs clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Tessera needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

demo: setup
	$(TESSERA) demo

test: setup
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m 'not docker and not faults and not network and not slow'

# Builds the image and runs docker-compose.yml; says so where no Docker engine answers.
test-docker: setup
	$(VENV)/bin/python -m pytest -m docker -rs

# Kills, stops, cuts off, fills up and damages real processes, disks and files, and says what each time is kept. Some need root.
test-faults: setup
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -rs tests/faults

# A federation of machines with addresses of their own, one of them cut off: network namespaces, which need root.
test-network: setup
	$(VENV)/bin/python -m pytest -m network -rs

test-all: setup
	$(VENV)/bin/python -m pytest

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# The site, in build/site: no network, and every warning is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) runs prepared build *.egg-info

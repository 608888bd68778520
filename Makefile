PYTHON ?= python3
VENV := .venv
TESSERA := $(VENV)/bin/tessera
PYTEST := $(VENV)/bin/python -m pytest
INSTALLED := $(VENV)/.installed
# The torch this was tested with, and the torchvision that belongs to it: beside another one pip would replace torch.
# Another build (CPU only, another CUDA) is one variable away.
TORCH ?= torch==2.13.0 torchvision==0.28.0
# Tests that need a Docker engine, root, or many minutes have targets of their own.
APART := not docker and not faults and not network and not slow and not security
# File by file, as they come: by default those of few tests, the long ones, would come last, when one core has nothing left.
IN_ORDER := --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-security test-slow test-docker test-faults test-network test-all lint screenshots docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv with Tessera and all that tests and docs need

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Tessera needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,docs]'
	touch $@

demo: setup ## train on the generated shop and show recommendations with reasons
	$(TESSERA) demo

test: setup ## all tests but those below: minutes
	$(PYTEST) -n 2 $(IN_ORDER) -m '$(APART)'

test-fast: setup ## those of them that start no federation of processes
	$(PYTEST) -n 2 $(IN_ORDER) -m '$(APART) and not integration'

test-security: setup ## attack runs on the generated shop, and send hostile bytes: is all refused that should be?
	TESSERA_FUZZ=20 $(PYTEST) -n 2 -m 'security or fuzzing'

test-slow: setup ## runs of minutes: Flower's own node, flwr on a SuperLink, Ray from the wheel, kills of whole federations
	$(PYTEST) -n 2 $(IN_ORDER) -m slow

test-docker: setup ## build the image and run docker-compose.yml; says so where no engine answers
	$(PYTEST) -m docker -rs

test-faults: setup ## kill, cut off and fill up real processes and disks, and say what is kept; some need root
	$(PYTEST) -n 2 --dist loadfile -rs tests/faults

test-network: setup ## a federation of machines with addresses of their own, one cut off; needs root
	$(PYTEST) -m network -rs

test-all: setup ## every test there is
	$(PYTEST)

lint: setup ## format, style, types, and who imports whom
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

screenshots: setup ## take the README's pictures of the pages anew, from the demo; needs Chromium
	$(VENV)/bin/python -m tessera.benchmarks.screenshots docs/images

docs: setup ## build the site in build/site: no network, and every warning is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

clean: ## remove .venv and all that was made
	rm -rf $(VENV) runs prepared build *.egg-info

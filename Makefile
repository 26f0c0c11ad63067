# make demo   installs the package, tries every command on the sample pictures, says where to look
# make test   installs the developers' tools too, then lint, types, tests (make fast, make slow: some of them)
# make test-exhaustive   before a release: every command killed, on a full disk, on several processes, with faults
# make docs   writes docs/config.md, after a key of a configuration changed
# VENV=folder takes another environment than .venv, PYTHON=program another interpreter to make it with.

VENV ?= .venv
PYTHON ?= python3
SAMPLES ?= docs/samples
BIN := $(VENV)/bin
PACKAGE := $(VENV)/.pictish-package
STAMP := $(VENV)/.pictish-installed
# A core a file of tests, in the order of tests/conftest.py; many of them start processes of their own.
TESTS := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-exhaustive install lint types tests fast slow docs clean
.DELETE_ON_ERROR:

demo: $(PACKAGE)
	rm -rf demo
	$(BIN)/python -m tools.demo_page $(SAMPLES) demo

test: lint types tests

install: $(STAMP)

$(PACKAGE): setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable .
	touch $@

$(STAMP): $(PACKAGE)
	$(BIN)/python -m pip install --editable '.[dev,starter-data]'
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

# A type checker cannot know that tokenizer/ is pictish.tokenizer: links in typings/ show it one whole package.
types: $(STAMP)
	rm -rf typings && mkdir -p typings/pictish
	ln -s $(foreach entry,$(filter-out %/__pycache__,$(wildcard pictish/*)),../../$(entry)) typings/pictish
	ln -s $(foreach part,$(wildcard configs data decoder lm tokenizer),../../$(part)) typings/pictish
	$(BIN)/mypy

# Both tiers at once: collecting takes half a minute.
tests: $(STAMP)
	$(TESTS) -m "not exhaustive"

fast: $(STAMP)
	$(TESTS) -m "not slow and not exhaustive"

slow: $(STAMP)
	$(TESTS) -m slow

test-exhaustive: $(STAMP)
	$(TESTS) -m exhaustive

docs: $(STAMP)
	$(BIN)/python -m tools.write_config_doc

clean:
	rm -rf typings demo build dist *.egg-info

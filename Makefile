# Every target makes its own environment in .venv: Python 3.11 and pip are enough, uv is used where it is there.
# `make help` lists the targets.

VENV   := .venv
BIN    := $(VENV)/bin
LOCK   := requirements/dev.txt
READY  := $(VENV)/.ready
MEASURED := docs/reference/measured
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
UV     := $(shell command -v uv)

# What has to take every branch, also where nothing can be compiled: so no test of compiling itself.
DATA_PLANE_TESTS := tests/devices/nvme/datapath $(addprefix tests/native/test_,$(addsuffix .py,\
	crc libc memory poller ring translation uring uring_kernels))

SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: demo test coverage check fuzz bench tables docs soak lock format clean help

demo: $(READY)  ## boot a Linux guest whose NVMe disk is served by outboard, and let it prove the disk
	$(BIN)/outboard demo

test: $(READY)  ## run the whole test suite, guest tests included, two files at a time
	$(BIN)/pytest -n 2 --dist loadfile $(PYTEST)

coverage: $(READY)  ## every branch of the data plane is taken by its tests, where there is no Numba
	PYTHONPATH=tools/without_numba CI= $(BIN)/coverage run -m pytest $(DATA_PLANE_TESTS)
	$(BIN)/coverage report

check: $(READY)  ## formatting, lint, types, floors of the house, house rules, documentation without warnings
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tools.check_house
	$(BIN)/python -m tools.points --check
	$(MAKE) --no-print-directory docs

fuzz: $(READY)  ## let atheris look for inputs that break codec, server, client, proxy, commands: SECONDS=60 each
	$(BIN)/python -m fuzz --seconds $(SECONDS)

bench: $(READY)  ## run every benchmark in its quick form, one table each
	@for file in bench/[a-z]*.py; do \
		echo "== $$file" && $(BIN)/python $$file $$(grep -o -m1 -e '"--quick"' $$file | tr -d '"') || exit 1; done

tables: $(READY)  ## measure at length, on a quiet machine, what the documentation shows
	$(BIN)/python bench/data_plane.py --markdown --svg docs/_static/data_plane.svg > $(MEASURED)/data_plane.md
	$(BIN)/python bench/protection.py --markdown > $(MEASURED)/protection.md
	$(BIN)/python bench/qos.py --markdown > $(MEASURED)/qos.md
	$(BIN)/python bench/zones.py --markdown > $(MEASURED)/zones.md
	$(BIN)/python bench/growth.py --markdown > $(MEASURED)/growth.md
	$(BIN)/python bench/startup.py --markdown > $(MEASURED)/startup.md
	$(BIN)/python bench/idle.py --markdown > $(MEASURED)/idle.md
	$(BIN)/python bench/in_guest.py --markdown > $(MEASURED)/in_guest.md

docs: $(READY)  ## build the documentation into docs/_build/html; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html

soak: $(READY)  ## the hours-long tests
	$(BIN)/pytest -m soak --timeout 0 $(PYTEST)

format: $(READY)  ## bring the sources into the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(READY)  ## compute the locked environment anew from pyproject.toml
	@test -n "$(UV)" || test -x $(BIN)/uv || $(PYTHON) -m pip --python $(BIN)/python install --quiet uv
	$(or $(UV),$(BIN)/uv) pip compile pyproject.toml --extra cli --extra fast --extra metrics --extra top --group dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --upgrade --quiet -o $(LOCK)

clean:  ## remove everything that was made
	rm -rf $(VENV) docs/_build docs/reference/api dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .fuzz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

# pip installs from the outside (--python), because some Debian machines cannot put a pip into a new environment.
$(READY): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "outboard needs Python 3.11 or newer, and $(PYTHON) is not: apt install python3, or make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "making $(VENV) (once, and when $(LOCK) changes)"
ifneq ($(UV),)
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r $(LOCK)
	@$(UV) pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps -e .
else
	@$(PYTHON) -c 'import venv' 2>/dev/null || { echo "$(PYTHON) has no venv module: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { echo "$(PYTHON) has no pip: apt install python3-pip" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv --without-pip $(VENV)
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	@$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
endif
	@touch $@

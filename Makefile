# Two commands do everything on a machine with Python 3.11 or newer: `make tau` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# `make tau LOCKED=1` installs exactly the versions of requirements.lock, for an exact repetition.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	$(if $(LOCKED),--constraint requirements.lock)

.PHONY: tau test lint docs lock clean

tau: $(VENV)/.installed
	$(BIN)/python -m harness.sweep sweeps/tau.yaml

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The versions that are installed now, without the mark of a build (2.13.0+cpu).
lock: $(VENV)/.installed-test $(VENV)/.installed-docs
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > requirements.lock

clean:
	rm -rf $(VENV)

# The stamp is written last: an interrupted set-up is taken up again by the next command.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed, $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>&1); name another with: make PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu:" \
	    "apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV) (once; some minutes) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@$(PIP) --editable '.[docs]'
	@touch $@

# Needs make and Python >= 3.10 on Linux or macOS; all else goes into a virtual environment.
#
#   make demo                          train on pictures that the package makes, for two minutes
#   make demo IMAGES=DIR LABELS=DIR    the same on your own
#   make test                          the whole suite
#   make types                         the types of the package, by mypy; `make test` does it first
#   make test-slow                     the long sweeps that `make test` leaves out, and the Hub's clients
#   make test-oldest                   the suite with the oldest versions that are supported
#   make docs                          the documentation, in site/, its blocks and the examples run
#   make wheel                         sdist and wheel, in dist/, tried in an empty environment
#   make clean                         remove what the above made

PYTHON ?= python3
VENV ?= .venv
OUT ?= $(if $(IMAGES)$(LABELS),runs/demo,demo)
FOLDERS = $(if $(IMAGES),--images "$(IMAGES)") $(if $(LABELS),--labels "$(LABELS)")
BIN := $(VENV)/bin
comma := ,

.PHONY: demo types test test-slow test-oldest docs wheel clean
.NOTPARALLEL:

demo: $(VENV)/.train
	$(BIN)/nestedseg demo --out "$(OUT)" $(FOLDERS)

types: $(VENV)/.test
	$(BIN)/mypy

test: types
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow
	tests/hub_versions.sh $(BIN)/python

test-oldest:
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --editable ".[train,test]" --constraint tests/oldest.txt
	$(VENV)-oldest/bin/python -m pytest -n auto --dist worksteal

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest -m "slow or not slow" -k "block or example" tests/docs

wheel:
	tests/wheel.sh $(PYTHON)

clean:
	rm -rf $(VENV) $(VENV)-oldest demo site build dist *.egg-info .pytest_cache .ruff_cache \
	  .mypy_cache .hypothesis

# The environment. A stamp stands for an installation that came to its end; while there is none,
# what lies there may be half of one, and is made anew. A stamp holds for what it installs more
# than the last: docs has test in it, test has train.
$(VENV)/.train: EXTRAS := train
$(VENV)/.test: EXTRAS := train,test
$(VENV)/.docs: EXTRAS := train,test,docs

$(VENV)/.train $(VENV)/.test $(VENV)/.docs: pyproject.toml
	@ls $(VENV)/.train $(VENV)/.test $(VENV)/.docs 2>/dev/null | grep -q . \
	  || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(VENV)/.train $(VENV)/.test $(VENV)/.docs
	$(BIN)/python -m pip install --editable ".[$(EXTRAS)]"
	@touch $(addprefix $(VENV)/.,$(subst $(comma), ,$(EXTRAS)))

# Needs make and Python >= 3.10 on Linux or macOS; everything else goes into a virtual environment.
#
#   make demo                          train on synthetic images for two minutes
#   make demo IMAGES=DIR LABELS=DIR    the same on your own images
#   make test                          run the whole test suite, after mypy and ruff
#   make types                         check the types of the package with mypy
#   make test-slow                     run the long tests that `make test` leaves out
#   make test-oldest                   run the suite with the oldest supported versions
#   make docs                          build the documentation in site/, run its code blocks and examples/
#   make wheel                         build sdist and wheel in dist/, and try them in an empty environment
#   make clean                         remove everything that the commands above made

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

# The environment. A stamp file marks an installation that was completed; without one the environment
# may be incomplete, and is made again. docs includes test, and test includes train, so that a stamp
# stands for all extras of the ones before it.
$(VENV)/.train: EXTRAS := train
$(VENV)/.test: EXTRAS := train,test
$(VENV)/.docs: EXTRAS := train,test,docs

$(VENV)/.train $(VENV)/.test $(VENV)/.docs: pyproject.toml
	@ls $(VENV)/.train $(VENV)/.test $(VENV)/.docs 2>/dev/null | grep -q . \
	  || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $(VENV)/.train $(VENV)/.test $(VENV)/.docs
	$(BIN)/python -m pip install --editable ".[$(EXTRAS)]"
	@touch $(addprefix $(VENV)/.,$(subst $(comma), ,$(EXTRAS)))

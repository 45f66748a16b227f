# setup · demo · test · check · bench: each works on a fresh clone by itself.
# PIP_ARGS is handed to pip, as in: make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

BIN := .venv/bin
STAMP := .venv/.set-up
PYTHONS := $(PYTHON) python3.11 python3.12 python3.13 python3

.PHONY: setup demo test check bench

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	for python in $(PYTHONS); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo 'error: no Python 3.11 or later here; name one: make setup PYTHON=/path/to/python' >&2; exit 2; fi; \
	if ! $(BIN)/python -c '' 2>/dev/null; then $$found -m venv --clear .venv; fi; \
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	  $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off $(PIP_ARGS) --editable '.[dev]'
	@touch $(STAMP)

demo: setup
	$(BIN)/potstill run recipes/quickstart.yaml

test: setup
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 $(PYTEST_ARGS)

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

bench: setup
	$(BIN)/python benchmarks/run_recipe.py recipes/quickstart.yaml

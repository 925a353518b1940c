# Everything below sets itself up in .venv, from nothing.   make demo · make test · make dev · make lint · make docs
# BNBENCH_TEST_AVX512BF16=0 make test (or =1): as on a processor without (with) AVX512-BF16, where bitsandbytes differs.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The strict editable install links file by file, so a new or removed file (a changed folder) installs again.
SOURCES := $(shell find bnbench metrics finetune reports -type d -not -name '__pycache__' -not -path '*/demo/*')

.PHONY: demo test dev lint typecheck docs clean

demo: .venv/.models
	$(BIN)/bnbench evaluate --out runs/demo

test: .venv/.dev lint typecheck docs
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term --cov-fail-under=90

dev: .venv/.dev
	@echo "ready: . .venv/bin/activate"

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: .venv/.dev
	MYPYPATH=$$(echo build/__editable__.bnbench-*/) $(BIN)/mypy --strict -p bnbench

docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/.models .venv/.dev: .venv/.%: pyproject.toml constraints.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	rm -rf build/__editable__.*
	$(BIN)/pip install -q -c constraints.txt -e '.[$*]' --config-settings editable_mode=strict
	touch $@

clean:
	rm -rf .venv build *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache

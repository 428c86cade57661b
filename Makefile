# `make run` and `make test` set up what they need; `make help` lists the rest.
PYTHON ?= python3
PARAMS ?= cpu
NAME   ?= $(notdir $(basename $(PARAMS)))
VENV   := .venv
BIN    := $(VENV)/bin
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
MAIN   := $(sort $(wildcard notebooks/0[1-4]_*.ipynb))
ALONE  := $(sort $(wildcard notebooks/1[23]_*.ipynb))
NBVAL  := --nbval --nbval-current-env --nbval-cell-timeout=600 --nbval-sanitize-with tests/sanitize.cfg

.PHONY: help setup run test test-bench lab lint outputs html bench gpu gpu-kit clean
.DEFAULT_GOAL := help

help:
	@echo "make run    PARAMS=$(PARAMS) NAME=$(NAME)   notebooks 01 to 04 into runs/NAME, ending in a report"
	@echo "make test    lint, unit tests, every notebook against its committed outputs, a smoke run"
	@echo "make test-bench   every measuring script in its small form"
	@echo "make lab     open the course in JupyterLab"
	@echo "make setup   .venv with all packages; small models and SQuAD into the cache (run and test do this)"
	@echo "make lint    ruff and the rule of imports, without changing anything"
	@echo "make outputs run the notebooks with their defaults and commit-ready outputs"
	@echo "make bench   time this project beside what people would use otherwise; into runs/bench.json"
	@echo "make gpu     measure BGE-M3 on this machine's CUDA GPU: tests, steps, memory, encoding; into runs/gpu.json"
	@echo "make gpu-kit what that needs on a GPU box without a network, in runs/gpu-kit"
	@echo "make html    the notebooks as HTML pages in runs/html"
	@echo "make clean   remove .venv and caches; runs/ stays"
	@echo "PARAMS: $(sort $(basename $(notdir $(wildcard notebooks/params/*.yaml)))), or a path to a .yaml file"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 …"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Could not make $(VENV); on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,scale]'
	$(BIN)/python -m helpers.importing.sources
	@touch $@

run: setup
	$(BIN)/python -m helpers.running --params $(PARAMS) --name $(NAME)

# The longest test files, in tests/running, start first; two processes with a thread each, since threads of both would wait
# for each other. Notebooks 01 to 04 run one after the other, since they build on each other; beside them run those that need
# nothing of them, and then the others. No progress bars: on a slow machine more of them would appear, and outputs are compared.
test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/running helpers tests -m 'not bench' --numprocesses 2 --dist loadfile \
	  --no-loadscope-reorder
	export TQDM_DISABLE=1 OMP_NUM_THREADS=1; \
	  $(BIN)/python -m pytest $(ALONE) $(NBVAL) & $(BIN)/python -m pytest $(MAIN) $(NBVAL); main=$$?; wait $$! && exit $$main
	TQDM_DISABLE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(filter-out $(MAIN) $(ALONE),$(NOTEBOOKS)) $(NBVAL) --numprocesses 2 \
	  --dist loadfile

# The measuring scripts as wholes, in small; they take minutes and are no part of the course.
test-bench: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/benchmarks -m bench --numprocesses 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

lab: setup
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks

# Outputs keep no papermill or timing metadata, no progress bars or widget state.
outputs: setup
	TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --inplace --execute $(NOTEBOOKS) --ExecutePreprocessor.record_timing=False
	$(BIN)/jupyter nbconvert --to notebook --inplace $(NOTEBOOKS) --ClearMetadataPreprocessor.enabled=True \
	  --ClearMetadataPreprocessor.preserve_cell_metadata_mask='["tags"]' \
	  --ClearMetadataPreprocessor.preserve_nb_metadata_mask='["kernelspec"]'

html: setup
	$(BIN)/jupyter nbconvert --to html --output-dir runs/html $(NOTEBOOKS)

bench: setup
	$(BIN)/python -m tests.benchmarks.measure_speed

gpu: setup
	$(BIN)/python -m tests.benchmarks.measure_gpu

gpu-kit: setup
	$(BIN)/python -m tests.benchmarks.gpu_kit

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The only commands to know. CI calls these and nothing else. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
STUDY ?= quick
JOBS ?= 2
PROFILE ?= local
PORT ?= 8000
KILLS ?= 1000
KILLED_RUNS ?= 20
STUDY_KILLS ?= 50
# Not empty: `make faults` puts faults into the code too, hours on one core.
MUTANTS ?=
# An index of CPU wheels of torch, for Linux machines without a GPU (see README); empty: what pip is configured to use.
TORCH_INDEX ?=

VENV := .venv
MVL := $(VENV)/bin/mvl
INSTALLED := $(VENV)/.installed
WEIGHTS := $(VENV)/.weights
# The tests read a second model's weights.
TEST_WEIGHTS := $(VENV)/.weights-minilm
# Lines of pip that show how far it is, or what it waits for: an index out of reach, versions that do not fit together.
SHOWN := ^(Installing collected packages|Successfully installed|ERROR.*|WARNING: Retrying.*|INFO: pip is looking at multiple versions of [^ ]+| +(Downloading|Using cached) .*[MG]B[)])
# STUDY may be the path of a YAML file.
RUNS := data/runs/$(notdir $(basename $(STUDY)))
# Written last, by a whole book with the rerun's page; holds the book's address.
REPRODUCED := $(RUNS)/.book
RERUN := book/_build/rerun-$(notdir $(basename $(STUDY)))
SOURCES := $(shell find book notebooks mvl data/*.* data/results \( -name _build -o -name __pycache__ -o -name '.*' \) -prune -o -type f -print 2>/dev/null)
# Not empty when the published book is there and newer than everything it is made of.
BOOK := book/_build/html/index.html
FRESH = $(shell test -f $(BOOK) && { find book notebooks mvl data/results \( -name _build -o -name __pycache__ \) -prune -o -type f -newer $(BOOK) -print | grep -q . || echo yes; })

# One thread per process: runs go side by side, and results are bitwise for a given number of threads.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Packages are compiled when first imported; without their caches each of the 23 runs would compile them again, 8 s of processor time.
export PYTHONDONTWRITEBYTECODE :=
export MPLBACKEND := agg

.DEFAULT_GOAL := help
.PHONY: help setup reproduce decisive test faults smoke check data figures notebooks book release serve bench gpu gpu-pack doctor clean
.DELETE_ON_ERROR:

help: ## list the targets
	@echo "make TARGET [STUDY=quick] [JOBS=2] [PROFILE=local]    studies: quick, smoke, hippocampus, busi, colab, paper"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(WEIGHTS) ## make .venv with the pinned versions and get the pretrained block, once

# A .venv whose making was cut off is made anew; an install that was cut off goes on, for the stamp is written last.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one by PYTHON=python3.x")'
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { echo "[setup] making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "[setup] installing the pinned packages (2 GB on disk with a CPU build of torch; 1 to 4 minutes)"
	@set -o pipefail; PYTHONUNBUFFERED=1 $(VENV)/bin/python -m pip install --no-compile --progress-bar off $(TORCH_INDEX:%=--extra-index-url %) \
	    -c constraints.txt -e '.[all]' 2>&1 | tee $(VENV)/install.log | grep --line-buffered -oE '$(SHOWN)' \
	    || { tail -n 20 $(VENV)/install.log; echo "[setup] pip failed; see $(VENV)/install.log, then make setup goes on from here"; exit 1; }
	@touch $@

$(WEIGHTS): $(INSTALLED)
	@echo "[setup] getting the pretrained block (SmolLM2-135M, 98 MB)"
	@$(MVL) fetch weights
	@touch $@

$(TEST_WEIGHTS): $(INSTALLED)
	@echo "[setup] getting a second model's weights for the tests (all-MiniLM-L6-v2, 80 MB)"
	@$(MVL) fetch weights --source minilm-l6
	@touch $@

reproduce: setup ## run STUDY, redraw every figure of the book from the records, compare both with what is published; goes on where it was
	@{ test -f $(RUNS)/runs.csv && $(MVL) study status $(STUDY) --complete >/dev/null; } \
	    || $(MVL) study run $(STUDY) --jobs $(JOBS) --profile $(PROFILE) || [ $$? -eq 1 ]
	@if $(MAKE) --no-print-directory -q $(REPRODUCED); then echo "everything is up to date: $$(cat $(REPRODUCED))"; else $(MAKE) --no-print-directory $(REPRODUCED); fi
	@$(MVL) figures --check $(RERUN); figures=$$?; echo; $(MVL) study check $(STUDY); check=$$?; \
	    echo; echo "the book with your rerun: $$(cat $(REPRODUCED))"; exit $$((check ? check : figures))

$(REPRODUCED): $(RUNS)/runs.csv $(SOURCES)
	@echo "[book] drawing every figure from the committed records, with a page on your runs of $(STUDY) (1 to 2 minutes)"
	@$(MVL) book --rerun $(STUDY) > $@.part && mv $@.part $@
	@echo "[book] $$(cat $@)"

ONE_BY_ONE := --jobs 1 --profile $(PROFILE)
decisive: setup ## start what settles the main claims with the papers' own models: planned at 11 hours of one H100, and 4 for the tuned runs after it
	@worst=0; for part in "run decisive_published $(ONE_BY_ONE)" "tune decisive_tuned" "run decisive_pictures $(ONE_BY_ONE)"; do \
	    $(MVL) study $$part; code=$$?; [ $$code -le 1 ] || exit $$code; [ $$code -eq 0 ] || { worst=1; echo "[decisive] not whole: study $$part"; }; done; \
	    echo "write the rates that the trials chose (data/runs/decisive_tuned/tuning.csv) into mvl/configs/studies/decisive_tuned.yaml, then: mvl study run decisive_tuned"; exit $$worst

test: setup $(TEST_WEIGHTS) ## run every test (7 to 12 minutes on two cores)
	@$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

faults: setup ## kill, flip, fill and cut on purpose, about 45 minutes (KILLS=1000 over KILLED_RUNS=20 runs, STUDY_KILLS=50; MUTANTS=1: into the code too; goes on where it was)
	@MVL_FAULT_FIGURES=data/faults.json MVL_FAULT_KILLS=$(KILLS) MVL_FAULT_RUNS=$(KILLED_RUNS) MVL_FAULT_STUDY_KILLS=$(STUDY_KILLS) \
	    MVL_FAULT_STATE=data/runs/faults $(VENV)/bin/python -m pytest -q -s -m faults $(ARGS); code=$$?; $(VENV)/bin/python -m mvl.evidence.faults; exit $$code
	@test -z "$(MUTANTS)" || $(VENV)/bin/python -m mvl.evidence.mutants --jobs $(JOBS)

smoke: setup ## train every system for a few steps (at most 10 minutes)
	@$(MVL) study run smoke --engine inline

check: setup ## lint, type-check, check the built book (links, names, browser) and the Colab set-up
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/lint-imports --no-cache
	@test -n "$(FRESH)" || { echo "[check] the book is missing or older than its sources: building it"; $(MVL) book; }
	$(VENV)/bin/python -m mvl.publish.book_check
	$(VENV)/bin/python -m pytest -q -m colab

data: setup ## get the scans of the published hippocampus study (28 MB), for the qualitative page
	@$(MVL) fetch Task04_Hippocampus

figures: setup ## draw README's figure and results again from the committed records
	@$(MVL) figures

notebooks: setup ## execute the notebooks on STUDY's runs, training what is missing
	@for path in notebooks/[0-9]*.ipynb; do $(MVL) notebook "$$(basename "$$path" .ipynb)" -p study $(STUDY) || exit 1; done

book: setup ## build the book from the committed records alone (under 2 minutes)
	@$(MVL) book

release: book ## write the book and the records as archives with checksums, into book/_build/release
	@$(VENV)/bin/python -m mvl.publish.records_archive

serve: book ## build the book and serve it at http://localhost:PORT
	@echo "http://localhost:$(PORT)  (Ctrl-C stops)"
	@$(VENV)/bin/python -m http.server $(PORT) --bind 127.0.0.1 --directory book/_build/html

bench: setup ## measure speed and memory beside their bars (RELEASED=folder: beside the released code too)
	@$(MVL) bench $(if $(RELEASED),--released $(RELEASED))

gpu: setup ## show all that a GPU must show, into data/gpu.json (ARGS="--minutes 12 --then STUDY --at-once 12"; goes on where it was)
	@$(VENV)/bin/python -m mvl.bench.gpu_checks $(if $(RELEASED),--released $(RELEASED)) $(ARGS)

gpu-pack: setup ## write data/runs/mvl-gpu.tar.xz: make gpu for a machine without network (DATASET=Task04_Hippocampus)
	@$(VENV)/bin/python -m mvl.bench.gpu_bundle $(if $(DATASET),--task $(DATASET)) $(ARGS)

doctor: setup ## print versions, devices, data and weights found, and what is missing
	@$(MVL) doctor

clean: ## remove .venv, caches and the built book; data and runs are kept
	rm -rf $(VENV) book/_build .pytest_cache .mypy_cache .ruff_cache build *.egg-info

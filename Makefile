# Two commands: `make reproduce` (the main job) and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
PROFILE ?= mini
SURVEY ?= mock
SEED ?= 0
DEVICE ?= auto

VENV := .venv
BIN := $(VENV)/bin
OUT := $(or $(ASTROCLIP_HOME),data)/$(SURVEY)/$(PROFILE)/executed
STAGES := mock_survey pretrain_spectrum pretrain_image train_redshift train_baselines align embed
PAGES := posterior domain redshift properties morphology retrieval reconstruction embedding_map real_galaxies
STUDIES := ablations spectrum_remedies ablation_pretraining released_model
# A page uses one core: with four cores or more, four pages are drawn at a time. A small network leaves most threads waiting:
# there the stages of the small profiles run side by side too, each with a share of the cores, and pages begin when they can.
CORES := $(shell $(PYTHON) -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
SIDE := $(shell echo $$(( $(CORES) < 4 ? 1 : 4 )))
TOGETHER := $(filter 4-mini 4-smoke,$(SIDE)-$(PROFILE))
# Several pages are drawn side by side: the lines of one come together, at its end.
AT_ONCE := { all=$$(cat); echo "$$all"; }
# glibc would map and return every large activation at each step: keeping them makes CPU training up to 40 % faster.
# Passive waiting: the threads of a compiled kernel would otherwise spin on, and take the cores from torch.
RUN := OMP_WAIT_POLICY=PASSIVE MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=10000000000 PYTHONUNBUFFERED=1 $(BIN)/papermill -k python3 \
	--no-progress-bar --no-request-save-on-cell-execute --autosave-cell-every 0 --execution-timeout 7200 \
	--stdout-file /dev/stdout
PARAMETERS = -f nbs/params/$(PROFILE).yaml -p survey $(SURVEY) -r device $(DEVICE) -p seed $(SEED)

.PHONY: help reproduce test install bench lab figures pages studies check prepare readme clean hooks lock $(addprefix stage-,$(STAGES)) $(addprefix figure-,$(PAGES) $(STUDIES) scoreboard)

help:  ## this list
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "make %-14s %s\n", $$1, $$2}'

reproduce: stage-mock_survey  ## main job: environment, survey, trainings, embeddings, every figure (PROFILE=, SURVEY=)
	@$(MAKE) --no-print-directory $(if $(TOGETHER),--jobs=3 SHARE=yes) $(addprefix stage-,$(filter-out mock_survey,$(STAGES))) $(if $(TOGETHER),$(addprefix figure-,$(PAGES)))
	@$(MAKE) --no-print-directory $(if $(TOGETHER),figure-scoreboard,pages)
	@test $(SURVEY)-$(PROFILE) != mock-mini || $(BIN)/python -m astroclip.core.readme figures  # the committed list is that of the default run
	@echo "done: figures and tables are in $$($(BIN)/python -c 'from astroclip.core.config import Params; from astroclip.core.plots import figures_dir; print(figures_dir(Params("$(SURVEY)", "$(PROFILE)")))')"

ifdef SHARE
stage-align: stage-pretrain_spectrum stage-pretrain_image
stage-embed: stage-align stage-train_redshift
$(addprefix figure-,$(PAGES)): stage-embed
figure-redshift figure-properties: stage-train_baselines
stage-pretrain_image stage-train_redshift $(addprefix figure-,$(PAGES)): threads = $$(( $(CORES) / 4 ))
stage-pretrain_spectrum stage-train_baselines stage-align: threads = $$(( $(CORES) / 2 ))
stage-embed: threads = $(CORES)
endif
$(addprefix stage-,$(STAGES)): stage-%: install
	@mkdir -p $(OUT); echo "== $* ($(SURVEY), $(PROFILE)) =="
	@$(if $(threads),OMP_NUM_THREADS=$(threads) NUMBA_NUM_THREADS=$(threads)) $(RUN) nbs/$*.ipynb $(OUT)/$*.ipynb $(PARAMETERS) | cat  # a pipe: papermill would truncate a log file

$(addprefix figure-,$(PAGES) $(STUDIES) scoreboard): figure-%: install  ## figure-redshift, figure-retrieval, ...: one page (makes what it needs)
	@mkdir -p $(OUT)
	@{ echo "== $* ($(SURVEY), $(PROFILE)) =="; $(if $(threads),OMP_NUM_THREADS=$(threads) NUMBA_NUM_THREADS=$(threads)) $(RUN) nbs/$*.ipynb $(OUT)/$*.ipynb $(PARAMETERS); } | $(if $(filter $*,$(PAGES)),$(AT_ONCE),cat)

pages: install
	@threads=$$(( $(CORES) < 2 * $(SIDE) ? 1 : $(CORES) / $(SIDE) )); OMP_NUM_THREADS=$$threads NUMBA_NUM_THREADS=$$threads $(MAKE) --no-print-directory --jobs=$(SIDE) $(addprefix figure-,$(PAGES))
	@$(MAKE) --no-print-directory figure-scoreboard

figures: pages  ## redraw every page from existing artifacts
	@test $(SURVEY)-$(PROFILE) != mock-mini || $(BIN)/python -m astroclip.core.readme figures  # the committed list is that of the default run

studies: $(addprefix figure-,$(STUDIES))  ## the long comparisons: what each setting brings (an hour; finished rows are kept), the published weights

# What older processors lack is switched off for one run of these tests: an answer that rests on one processor fails here.
OLDER := ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 OPENBLAS_CORETYPE=Nehalem NUMBA_CPU_NAME=generic
FAST := $(addprefix tests/test_,$(addsuffix .py,models losses images spectra checkpoints metrics neighbours redshift_classifier))
test: install  ## environment, library notebooks, pytest with the smoke run of every page
	@$(MAKE) --no-print-directory check
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
	@echo "== the fast tests once more, as on a processor without vector units of the last fifteen years =="
	$(OLDER) OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile -m 'not smoke and not slow' $(FAST)

check: install  ## notebooks clean, package exported, README current, library notebooks run
	@$(BIN)/python -m astroclip.core.readme check
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m astroclip.core.checks  # each in a process of its own

install: $(VENV)/.installed  ## build .venv (pinned versions on Python 3.11, bounds elsewhere)

$(VENV)/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "astroclip needs Python 3.11, 3.12 or 3.13, found $$($(PYTHON) --version): run make with PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
		$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 && \
		$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock && \
		$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .; \
	else \
		$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 && \
		$(BIN)/pip install --quiet --disable-pip-version-check -e '.[mock,evaluation,dev]'; \
	fi
	@touch $@

bench: install  ## speed ratios of the fast paths on this machine, one thread: figures/benchmarks.png and its table
	@mkdir -p $(OUT); echo "== benchmarks =="
	@$(RUN) nbs/benchmarks.ipynb $(OUT)/benchmarks.ipynb $(PARAMETERS)

lab: install  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

prepare: install  ## export, clean, README: run this before a commit
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python -m astroclip.core.readme write

readme: install  ## README.md from nbs/index.ipynb
	$(BIN)/python -m astroclip.core.readme write

hooks: install  ## git hooks that clean and export notebooks
	$(BIN)/nbdev_install_hooks

lock: install  ## rewrite requirements.lock from the working environment
	$(BIN)/pip freeze --all --exclude-editable --exclude pip | sed -E 's/^(torch==[0-9.]+).*/\1/' | grep -v ' @ ' > requirements.lock

clean:  ## remove artifacts of this profile (asks nothing: they are made again by `make reproduce`)
	rm -rf $(or $(ASTROCLIP_HOME),data)/$(SURVEY)/$(PROFILE)

# Two commands: `make reproduce` (the main job) and `make test`. `make help` lists the rest.
# Every run takes PROFILE=, SURVEY=, SEED=, DEVICE= and SET= (settings to change: SET="align.embed_dim=64 align.shift=2").
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
PROFILE ?= mini
SURVEY ?= mock
SEED ?= 0
DEVICE ?= auto
SET ?=
RUNS ?=
export SET RUNS  # recipes read them from the environment: their blanks and brackets are nobody's business

VENV := .venv
BIN := $(VENV)/bin
STAGES := mock_survey mock_targets pretrain_spectrum train_redshift train_baselines pretrain_image align embed
PAGES := posterior domain redshift properties morphology retrieval beyond_color reconstruction embedding_map real_galaxies real_images spectrum_gap
STUDIES := ablations ablation_spectrum ablation_pretraining released_model
# One notebook by itself; what runs side by side, and with how many threads, is decided in nbs/core/27_pipeline.ipynb.
# glibc would map and return every large activation at each step: keeping them makes CPU training up to 40 % faster.
# Passive waiting: the threads of a compiled kernel would otherwise spin on, and take the cores from torch.
RUN := OMP_WAIT_POLICY=PASSIVE MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=10000000000 PYTHONUNBUFFERED=1 $(BIN)/papermill -k python3 \
	--no-progress-bar --no-request-save-on-cell-execute --autosave-cell-every 0 --execution-timeout 14400 \
	--stdout-file /dev/stdout
# Ctrl-C reaches every process of a recipe at once: the recipe itself has the last word.
RESUMES := trap 'echo "interrupted: what is finished is kept, the same command resumes"' INT;
PARAMETERS = -f nbs/params/$(PROFILE).yaml -p survey $(SURVEY) -r device $(DEVICE) -p seed $(SEED) -r set "$$SET"
PIPELINE := $(BIN)/python -m astroclip.core.pipeline
ALL = --survey $(SURVEY) --profile $(PROFILE) --seed $(SEED) --device $(DEVICE) --set "$$SET"
# The folder of executed notebooks: a run with another seed or changed settings has its own. And one notebook by itself.
ONE = out="$$($(PIPELINE) folder $(ALL))"; mkdir -p "$$out"; echo "== $(1) ($(SURVEY), $(PROFILE)$${SET:+, $$SET}) =="; \
	$(RESUMES) $(RUN) nbs/$(1).ipynb "$$out/$(1).ipynb" $(PARAMETERS)
IS_DEFAULT = test "$(SURVEY)-$(PROFILE)-$(SEED)-$$SET" = mock-mini-0-

.PHONY: help reproduce test install bench lab figures studies compare check prepare readme clean hooks lock $(addprefix stage-,$(STAGES)) $(addprefix figure-,$(PAGES) $(STUDIES) scoreboard)

help:  ## this list
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "make %-14s %s\n", $$1, $$2}'

reproduce: install  ## main job: environment, survey, trainings, embeddings, every figure (PROFILE=, SURVEY=, SEED=, SET=)
	@$(PIPELINE) reproduce $(ALL)
	@! $(IS_DEFAULT) || $(BIN)/python -m astroclip.core.readme figures  # the committed list is that of the default run

$(addprefix stage-,$(STAGES)): stage-%: install
	@$(call ONE,$*) | cat  # a pipe: papermill would truncate a log file

$(addprefix figure-,$(PAGES) $(STUDIES) scoreboard): figure-%: install  ## figure-redshift, figure-retrieval, ...: one page (makes what it needs)
	@$(call ONE,$*) | cat

figures: install  ## redraw every page from existing artifacts
	@$(PIPELINE) pages $(ALL)
	@! $(IS_DEFAULT) || $(BIN)/python -m astroclip.core.readme figures  # the committed list is that of the default run

studies: install  ## the long comparisons: supervised networks, fine-tuned towers, ablations, published weights (hours; finished parts are kept)
	@$(PIPELINE) studies $(ALL)

compare: install  ## runs side by side: scores with paired intervals, curves (RUNS="; align.embed_dim=64; align.shift=0")
	@$(call ONE,compare) -r runs "$$RUNS" | cat

# What older processors lack is switched off for one run of these tests: an answer that rests on one processor fails here.
OLDER := ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 OPENBLAS_CORETYPE=Nehalem NUMBA_CPU_NAME=generic
FAST := $(addprefix tests/test_,$(addsuffix .py,models losses goldens images spectra checkpoints metrics neighbours redshift_classifier))
test: install  ## environment, library notebooks, pytest with the smoke run of every page
	@$(MAKE) --no-print-directory check
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
	@echo "== the fast tests once more, as on a processor without vector units of the last fifteen years =="
	$(OLDER) OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile -m 'not smoke and not slow' $(FAST)

check: install  ## notebooks clean, package exported, README current, library notebooks run
	@$(BIN)/python -m astroclip.core.readme check
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m astroclip.core.checks  # each in a process of its own

install: $(VENV)/.installed  ## build .venv (pinned versions on Python 3.11, bounds elsewhere)

$(VENV)/.installed: pyproject.toml requirements.lock .ci/ipython_kernel_config.py
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
	@mkdir -p $(VENV)/etc/ipython && cp .ci/ipython_kernel_config.py $(VENV)/etc/ipython/
	@touch $@

bench: install  ## speed ratios of the fast paths on this machine, one thread: figures/benchmarks/ratios.png and its table
	@$(call ONE,benchmarks)

.PHONY: docs
docs: $(VENV)/.docs  ## documentation site from notebooks, figures and signatures: _docs/html (built offline)
	@$(BIN)/python docs/build.py

$(VENV)/.docs: docs/requirements.txt $(VENV)/.installed
	@$(BIN)/pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

lab: install  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs/start.ipynb

prepare: install  ## export, clean, README: run this before a commit
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python -m astroclip.core.readme write

readme: install  ## README.md from nbs/index.ipynb
	$(BIN)/python -m astroclip.core.readme write

hooks: install  ## git hooks that clean and export notebooks
	$(BIN)/nbdev_install_hooks

lock: install  ## rewrite requirements.lock from the working environment
	$(BIN)/pip freeze --all --exclude-editable --exclude pip | sed -E 's/^(torch==[0-9.]+).*/\1/' | grep -v ' @ ' | grep -vixFf docs/requirements.txt > requirements.lock

clean:  ## remove artifacts of this profile (asks nothing: they are made again by `make reproduce`)
	rm -rf $(or $(ASTROCLIP_HOME),data)/$(SURVEY)/$(PROFILE)

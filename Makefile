# Two commands: `make reproduce` (the main job) and `make test`. `make help` lists the rest.
# Every run takes PROFILE=, SURVEY=, SEED=, DEVICE= and SET= (settings to change: SET="align.embed_dim=64 align.shift=2").
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAGES := mock_survey mock_targets pretrain_spectrum train_redshift train_baselines pretrain_image align embed
PAGES := posterior domain redshift predict properties morphology retrieval beyond_color reconstruction embedding_map real_galaxies real_images spectrum_gap check in_the_box surveys
STUDIES := ablations ablation_spectrum ablation_pretraining remedies released_model
export SET ?=
export RUNS ?=  # recipes read both from the environment: their blanks and brackets are nobody's business
# What runs side by side, with how many threads, and what of it is found again: nbs/core/27_pipeline.ipynb.
RUN = $(BIN)/python -m astroclip.core.pipeline
ALL = --survey $(or $(SURVEY),mock) --profile $(or $(PROFILE),mini) --seed $(or $(SEED),0) --device $(or $(DEVICE),auto) --set "$$SET"
.PHONY: help reproduce test install bench lab app figures studies compare check prepare clean lock docs
help:  ## this list
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "make %-14s %s\n", $$1, $$2}'
reproduce: install  ## main job: environment, survey, trainings, embeddings, every figure (PROFILE=, SURVEY=, SEED=, SET=)
	@$(RUN) reproduce $(ALL)
stage-%: install  ## stage-align, stage-embed, ...: one stage (makes what it needs)
	@$(RUN) one $* $(ALL)
figure-%: install  ## figure-redshift, figure-retrieval, ...: one page (makes what it needs)
	@$(RUN) one $* $(ALL)
figures: install  ## redraw every page from existing artifacts
	@$(RUN) pages $(ALL)
studies: install  ## the long comparisons: supervised networks, fine-tuned towers, ablations, published weights (hours; finished parts are kept)
	@$(RUN) studies $(ALL)
compare: install  ## runs side by side: scores with paired intervals, curves (RUNS="; align.embed_dim=64; align.shift=0")
	@$(RUN) one compare $(ALL) --runs "$$RUNS"
bench: install  ## speed ratios of the fast paths on this machine, one thread: figures/benchmarks/ratios.png and its table
	@$(RUN) one benchmarks $(ALL)
# What older processors lack is switched off for one run of these tests: an answer that rests on one processor fails here.
OLDER := ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 OPENBLAS_CORETYPE=Nehalem NUMBA_CPU_NAME=generic
FAST := $(addprefix tests/test_,$(addsuffix .py,models losses goldens images spectra checkpoints metrics neighbours index one_query redshift_classifier))
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile
test: $(VENV)/.extras check  ## environment, library notebooks, pytest with the smoke run of every page; the fast tests as on an old processor
	$(PYTEST) --no-loadscope-reorder
	$(OLDER) $(PYTEST) -m 'not smoke and not slow' $(FAST)
check: install  ## notebooks clean, package exported, README current, library notebooks run
	@$(BIN)/python -m astroclip.core.readme check
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m astroclip.core.checks  # each in a process of its own
install: $(VENV)/.installed  ## build .venv (pinned versions on Python 3.11, bounds elsewhere)
$(VENV)/.installed: pyproject.toml requirements.lock .ci/install .ci/ipython_kernel_config.py
	@bash .ci/install $(PYTHON) $(VENV)
$(VENV)/.extras: $(VENV)/.installed tests/extras.lock
	@bash .ci/install $(PYTHON) $(VENV) extras
app: $(VENV)/.extras  ## the page: similarity search in a browser, on this machine
	$(BIN)/astroclip app
docs: install  ## documentation site from notebooks, figures and signatures: _docs/html (built offline)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@$(BIN)/python docs/build.py
lab: install  ## open the notebooks in JupyterLab, at the first
	$(BIN)/jupyter lab nbs/start.ipynb
prepare: install  ## export, clean, README: run this before a commit
	$(BIN)/nbdev_export && $(BIN)/nbdev_clean && $(BIN)/python -m astroclip.core.readme write
lock: install  ## rewrite requirements.lock from the working environment
	$(BIN)/pip freeze --all --exclude-editable --exclude pip | sed -E 's/^(torch==[0-9.]+).*/\1/' | grep -v ' @ ' | grep -vixFf <(cat docs/requirements.txt tests/extras.lock) > requirements.lock
clean:  ## remove artifacts of this profile (asks nothing: they are made again by `make reproduce`)
	rm -rf $(or $(ASTROCLIP_HOME),data)/$(or $(SURVEY),mock)/$(or $(PROFILE),mini)

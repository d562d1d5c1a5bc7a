# Everything starts from `make env`; every other target does that by itself.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PEERS := .venv/.peers-installed
DEMO := runs/demo
TRAIN := $(BIN)/slipstream train $(DEMO)/data --config examples/movietweetings/train.yaml
BENCHES := kernels step gates shared loader prepare globo synthetic-fit
# Where a record's name is not that of its benchmark.
RECORD_globo := globo_prequential
# Extra flags of `slipstream bench`, for example: make bench-step BENCH_FLAGS=--quick
BENCH_FLAGS ?=

.PHONY: help env env-bench demo test faults lint format types results clean bench-frontier $(addprefix bench-,$(BENCHES))

help:
	@echo "make env      create .venv with pinned versions; make env-bench adds the benchmarks' peers"
	@echo "make demo     prepare MovieTweetings, train with and without skipping, compare"
	@echo "make test     all tests          make lint / make types / make format"
	@echo "make faults   KILLS=200 kills at random moments, each resumed to the same bits"
	@echo "make bench-X  X one of: $(BENCHES); the record goes to benchmarks/results/"
	@echo "make bench-frontier DATA=globo   quality against time for every policy, with random skipping"
	@echo "make results  rewrite README's tables from benchmarks/results/"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make env PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The peers of the benchmarks. torchrec names fbgemm's CUDA build, which would come beside the CPU build: hence --no-deps.
env-bench: $(PEERS)

$(PEERS): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt fbgemm-gpu-cpu pyre-extensions tensordict torchmetrics tqdm
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps torchrec
	@touch $@

demo: env
	test -e $(DEMO)/data/store.json || $(BIN)/slipstream prepare examples/movietweetings $(DEMO)/data
	$(TRAIN) --policy none --out $(DEMO)/full
	$(TRAIN) --policy random --budget 0.5 --out $(DEMO)/random
	$(TRAIN) --policy psse --budget 0.9 --set policy.warmup_steps=100 --set policy.every=50 --out $(DEMO)/psse
	$(BIN)/slipstream compare $(DEMO)/full $(DEMO)/random $(DEMO)/psse --html $(DEMO)/report.html

test: env
	$(BIN)/python -m pytest -q

# SIGKILL at random moments, full disks, damaged checkpoints; the suite itself makes do with 10 kills.
KILLS ?= 200

faults: env
	KILLS=$(KILLS) $(BIN)/python -m pytest -q -s tests/faults tests/training/test_checkpoint.py tests/training/test_resume.py

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: env
	$(BIN)/pyright

bench-kernels: env-bench

# Quality against time, for example: make bench-frontier DATA=globo BENCH_FLAGS="--policies psse --seeds 3"
DATA ?= movietweetings

bench-frontier: env
	$(BIN)/slipstream bench frontier --data $(DATA) --json benchmarks/results/frontier_$(subst -,_,$(basename $(notdir $(DATA)))).json \
	  --html runs/frontier_$(basename $(notdir $(DATA))).html --cache runs/cache $(BENCH_FLAGS)

$(addprefix bench-,$(BENCHES)): bench-%: env
	$(BIN)/slipstream bench $* --json benchmarks/results/$(or $(RECORD_$*),$(subst -,_,$*)).json $(BENCH_FLAGS)

results: env
	$(BIN)/python -m slipstream.report.readme README.md benchmarks/results

clean:
	rm -rf build dist runs .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

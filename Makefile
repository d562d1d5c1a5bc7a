# Everything starts from `make env`; every other target does that by itself.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
BENCH_STAMP := .venv/.peers-installed
DEMO := runs/demo
TRAIN := $(BIN)/slipstream train $(DEMO)/data --config examples/movietweetings/train.yaml
BENCHES := kernels step gates shared checks limit scale loader prepare globo drift continue row-share cache-bytes guard ranks profile-step synthetic-fit
# Where a record's name is not that of its benchmark.
RECORD_globo := globo_prequential
# Extra flags of `slipstream bench`, for example: make bench-step BENCH_FLAGS=--quick
BENCH_FLAGS ?=

# Whom `make bench-peers` measures, each in an environment of its own; for example: make bench-peers PEERS=implicit
PEERS ?= torchrec fuxictr recbole implicit
PEER_VENVS := .venv-peers

INTEROP := .venv-interop
LIBRARIES := fuxictr deepctr_torch recbole torchrec

.PHONY: help env env-bench docs pages interop interop-env interop-quick demo test test-gpu sanitize-gpu gpu-ready \
  faults fuzz soak matrix lint format types results clean bench-gpu bench-frontier bench-peers bench-profile frontier-page $(addprefix bench-,$(BENCHES))

help:
	@echo "make env      create .venv with pinned versions; make env-bench adds the benchmarks' peers"
	@echo "make demo     prepare MovieTweetings, train with and without skipping, compare"
	@echo "make test     all tests          make lint / make types / make format"
	@echo "make test-gpu the kernels' tests, compiled, on a GPU, and under compute-sanitizer; make bench-gpu (see docs/gpu.md)"
	@echo "make fuzz MINUTES=30 JOBS=2   damaged input for every reader, so many processor minutes of each, in pieces if need"
	@echo "                       be: goes on where the record ends; TARGETS=\"csv config\" names some"
	@echo "make soak MINUTES=120   trainings that continue one another, in one process; memory, threads and files stay flat"
	@echo "make matrix   tests at the lowest and newest versions of the dependencies, in environments of their own"
	@echo "make faults   KILLS=200 kills at random moments, each resumed to the same bits"
	@echo "make bench-X  X one of: $(BENCHES); the record goes to benchmarks/results/"
	@echo "make bench-frontier DATA=globo   quality against time for every policy, with random skipping"
	@echo "make bench-peers PEERS=\"torchrec implicit\"   beside other systems: samples a second, time to quality, memory"
	@echo "make interop  train models of $(LIBRARIES) with and without us"
	@echo "make interop-quick  the same on little data, in two minutes: is the metric the same, does skipping run"
	@echo "make frontier-page               one page of all kept frontiers: runs/frontiers.html"
	@echo "make bench-profile               where the time of a training step goes"
	@echo "make docs     build the documentation site, strictly, into build/site"
	@echo "make pages    rewrite the reference pages from the code; PICTURES=--pictures draws, too"
	@echo "make results  rewrite README's tables and docs/results.html from benchmarks/results/"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one: make env PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# The peers of the benchmarks. torchrec names fbgemm's CUDA build, which would come beside the CPU build: hence --no-deps.
env-bench: $(BENCH_STAMP)

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt fbgemm-gpu-cpu pyre-extensions tensordict torchmetrics tqdm
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps torchrec
	@touch $@

# Other libraries' models, in an environment of their own, beside our package installed as users install it.
interop: interop-env
	for library in $(LIBRARIES); do \
	  $(INTEROP)/bin/python -m examples.compare $$library --json benchmarks/results/interop_$$library.json || exit 1; \
	done
	$(INTEROP)/bin/torchrun --nproc-per-node 2 -m examples.torchrec.sharded
	$(INTEROP)/bin/python -m examples.page

# All libraries, even when one of them differs.
interop-quick: interop-env
	status=0; for library in $(LIBRARIES); do \
	  $(INTEROP)/bin/python -m examples.compare $$library --quick || status=1; \
	done; exit $$status

interop-env: $(INTEROP)/.installed $(INTEROP)/.package

# What requirements.txt marks comes without its dependencies: RecBole and TorchRec pin versions that do not exist beside
# this torch.
$(INTEROP)/.installed: constraints.txt $(LIBRARIES:%=examples/%/requirements.txt)
	test -x $(INTEROP)/bin/python || $(PYTHON) -m venv $(INTEROP)
	for library in $(LIBRARIES); do \
	  grep -v -- '# --no-deps' examples/$$library/requirements.txt > $(INTEROP)/with-deps.txt; \
	  grep -- '# --no-deps' examples/$$library/requirements.txt > $(INTEROP)/without-deps.txt; \
	  $(INTEROP)/bin/python -m pip install --quiet --constraint constraints.txt -r $(INTEROP)/with-deps.txt || exit 1; \
	  $(INTEROP)/bin/python -m pip install --quiet --no-deps -r $(INTEROP)/without-deps.txt || exit 1; \
	done
	@touch $@

$(INTEROP)/.package: $(INTEROP)/.installed pyproject.toml $(shell find src -name '*.py')
	$(INTEROP)/bin/python -m pip install --quiet --constraint constraints.txt .
	@touch $@

# Records of --quick runs are not for quoting, and do not take the place of kept ones.
bench-peers: env $(PEERS:%=$(PEER_VENVS)/%/.installed)
	$(BIN)/python -m benchmarks.peers all --peers "$(PEERS)" --venvs $(PEER_VENVS) \
	  --json $(if $(findstring --quick,$(BENCH_FLAGS)),runs/peers,benchmarks/results) $(BENCH_FLAGS)

$(PEER_VENVS)/%/.installed: benchmarks/peers/%/requirements.txt constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	grep -v -- '# --no-deps' $< > $(@D)/with-deps.txt
	grep -- '# --no-deps' $< > $(@D)/without-deps.txt || true
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt -r $(@D)/with-deps.txt
	test ! -s $(@D)/without-deps.txt || $(@D)/bin/python -m pip install --quiet --no-deps -r $(@D)/without-deps.txt
	@touch $@

demo: env
	test -e $(DEMO)/data/store.json || $(BIN)/slipstream prepare examples/movietweetings $(DEMO)/data
	$(TRAIN) --policy none --out $(DEMO)/full
	$(TRAIN) --policy random --budget 0.5 --out $(DEMO)/random
	$(TRAIN) --policy psse --budget 0.9 --set policy.warmup_steps=100 --set policy.every=50 --out $(DEMO)/psse
	$(BIN)/slipstream compare $(DEMO)/full $(DEMO)/random $(DEMO)/psse --html $(DEMO)/report.html

# Two processes: most tests use one core. A file's tests stay together, for what they share.
test: env
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile

# On a machine with a GPU the Python whose torch sees it is used as it is: nothing is installed beside it.
GPU_PYTHON ?= $(shell python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null \
  && echo python3 || echo $(BIN)/python)
GPU_TESTS := tests/gpu tests/kernels tests/properties
SANITIZER ?= compute-sanitizer

gpu-ready:
	@command -v $(GPU_PYTHON) > /dev/null || $(MAKE) env
	@PYTHONPATH=src $(GPU_PYTHON) -c 'import slipstream.bench.gpu, slipstream.training' || { echo "Install what is missing" \
	  "beside that torch, which stays: $(GPU_PYTHON) -m pip install numba polars pyarrow pydantic pyyaml safetensors" \
	  "scikit-learn matplotlib rich typer; for test-gpu hypothesis pytest pytest-timeout, too" >&2; exit 1; }

test-gpu: gpu-ready
	SLIPSTREAM_TEST_GPU=1 PYTHONPATH=src $(GPU_PYTHON) -m pytest -q $(GPU_TESTS)
	@$(MAKE) sanitize-gpu

# Without torch's cache of memory each tensor is an allocation of its own, so that a step over its end is seen.
sanitize-gpu: gpu-ready
	@command -v $(SANITIZER) > /dev/null || { echo "skipped: $(SANITIZER) is not on PATH"; exit 0; }; \
	for tool in memcheck racecheck; do \
	  SLIPSTREAM_TEST_GPU=1 PYTHONPATH=src PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool $$tool \
	    --error-exitcode 1 $(GPU_PYTHON) -m pytest -q --timeout 0 tests/kernels/test_cuda.py || exit 1; \
	done

bench-gpu: gpu-ready
	PYTHONPATH=src $(GPU_PYTHON) -m slipstream bench gpu --json benchmarks/results/gpu.json $(BENCH_FLAGS)

# Hypothesis with damaged input, so many processor minutes of each target, JOBS targets at a time. A run goes on where
# the record ends; one to keep: make fuzz MINUTES=30 FUZZ_RECORD=benchmarks/results/fuzz.json
MINUTES ?= 5
TARGETS ?=
JOBS ?= 1
FUZZ_RECORD ?= runs/fuzz.json

fuzz: env
	PYTHONPATH=. $(BIN)/python -m tests.fuzz $(MINUTES) $(TARGETS) --jobs $(JOBS) --record $(FUZZ_RECORD)

# Trainings in one process for so long; keeps what memory, threads and open files did.
soak: env
	PYTHONPATH=. $(BIN)/python -m tests.soak $(MINUTES) benchmarks/results/soak.json docs/images/soak.svg

# For example: make matrix MATRIX="lowest -- tests/kernels"
MATRIX ?= lowest newest

matrix:
	$(PYTHON) .ci/matrix.py $(MATRIX)

# SIGKILL at random moments, full disks, damaged checkpoints; the suite itself makes do with 10 kills.
KILLS ?= 200

faults: env
	KILLS=$(KILLS) $(BIN)/python -m pytest -q -s tests/faults tests/training/test_checkpoint.py tests/training/test_resume.py

# The documentation site, into build/site; strict: a link that leads nowhere fails. Offline once installed.
DOCS := .venv/.docs-installed

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python .ci/check_site.py build/site

# Rewrites the pages of docs/ that are made from the code and the records; PICTURES=--pictures draws (a minute), too.
PICTURES ?=

pages: env
	$(BIN)/python -m pages $(PICTURES)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: env
	$(BIN)/pyright

bench-kernels bench-ranks: env-bench

# Quality against time, for example: make bench-frontier DATA=globo BENCH_FLAGS="--policies psse --seeds 3"
DATA ?= movietweetings

bench-frontier: env
	$(BIN)/slipstream bench frontier --data $(DATA) --json benchmarks/results/frontier_$(subst -,_,$(basename $(notdir $(DATA)))).json \
	  --html runs/frontier_$(basename $(notdir $(DATA))).html --cache runs/cache $(BENCH_FLAGS)

frontier-page: env
	$(BIN)/slipstream bench frontier $(addprefix --also ,$(sort $(wildcard benchmarks/results/frontier_*.json))) --html runs/frontiers.html

bench-profile: bench-profile-step

$(addprefix bench-,$(BENCHES)): bench-%: env
	$(BIN)/slipstream bench $* --json benchmarks/results/$(or $(RECORD_$*),$(subst -,_,$*)).json $(BENCH_FLAGS)

results: env
	$(BIN)/python -m slipstream.report.readme README.md benchmarks/results
	$(BIN)/python -m slipstream.report.results docs/results.html benchmarks/results

clean:
	rm -rf build dist runs .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

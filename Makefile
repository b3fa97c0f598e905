# Everything runs in .venv, made on first use; a stamp remembers what is installed there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
SETUP := setup.cfg pyproject.toml
EXTRAS := test docs peers plot parquet serving ray triton
comma := ,
space := $(subst ,, )
# One worker a core, up to four: models are small, and so may be the machine.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && echo 4 || echo $$n)
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint types pytest docs fuzz same limits reached mutants steady faults triton-server kills models interop bench splits scoreboard providers serve-demo bench-gpu audit pins wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(STAMPS)/base ## optimize every model in models/, check each, print one table
	$(BIN)/python -m benchmarks.demo $(ARGS)

test: lint types pytest ## everything that CI runs

lint: $(STAMPS)/test ## ruff
	$(BIN)/ruff check .

types: $(STAMPS)/test ## mypy
	$(BIN)/mypy

pytest: $(STAMPS)/test ## the tests alone
	$(BIN)/python -m pytest -q -n $(WORKERS) $(ARGS)

docs: $(STAMPS)/test ## the documentation as a site, in build/site; links and anchors are checked
	$(BIN)/mkdocs build --strict -q -f docs/site/mkdocs.yml
	@echo "open build/site/index.html; with search: $(BIN)/mkdocs serve -f docs/site/mkdocs.yml"

models: $(STAMPS)/models ## train and export the sample models anew (needs torch)
	$(BIN)/python models/build.py

interop: $(STAMPS)/interop ## export, optimize, check and measure public models; docs/interop.md
	$(BIN)/python -m benchmarks.interop

fuzz: $(STAMPS)/test ## random graphs for as long as you like: make fuzz ARGS='--examples 20000'
	$(BIN)/python -m tests.fuzz.run $(ARGS)

same: $(STAMPS)/test ## compare what this checkout writes with what BASE=COMMIT wrote, byte for byte
	$(BIN)/python -m benchmarks.same $(BASE) $(ARGS)

speed: $(STAMPS)/test ## source against output, measured and predicted: make speed FOLDER=.. (graphs with sides beside them)
	$(BIN)/python -m benchmarks.speed $(or $(FOLDER),tests/data/interop) build/speed.jsonl $(ARGS)
	$(BIN)/python -m benchmarks.speed_table build/speed.jsonl

limits: $(STAMPS)/test ## time and memory of graphs as large, wide and deep as they get; docs/reliability.md
	$(BIN)/python -m benchmarks.limits $(ARGS)

reached: $(STAMPS)/test ## what the default check reaches of the sample models; docs/parity-details.md
	$(BIN)/python -m benchmarks.parity.coverage $(ARGS)

mutants: $(STAMPS)/test ## what the check finds of each wrong model; docs/parity-mutants.md
	$(BIN)/python -m benchmarks.parity.mutants $(ARGS)

steady: $(STAMPS)/test ## 20 checks of a right, a wrong and a mended model, with and without four processes that burn the processors
	$(BIN)/python -m benchmarks.parity.steady $(ARGS)

faults: $(STAMPS)/test ## 10,000 malformed requests beside right ones, Redis killed under load, stores switched, clients that hang up
	MARI_ONNX_MALFORMED=10000 $(BIN)/python -m pytest -q -s tests/serving/test_faults.py

triton-server: $(STAMPS)/test $(STAMPS)/triton ## the Python backend on a real tritonserver (x86-64 Linux, no GPU needed); docs/triton.md
	MARI_ONNX_TRITON=$(TRITON) $(BIN)/python -m pytest -q tests/serving/test_triton_real.py

kills: $(STAMPS)/test ## 200 runs ended, 200 killed, 200 writers killed, each at a random moment
	MARI_ONNX_KILLS=200 $(BIN)/python -m pytest -q -s tests/test_ended.py tests/test_files.py tests/splitting/test_files.py tests/serving/test_precompute.py -k "run_that_is or a_kill_leaves"

bench: $(STAMPS)/test $(STAMPS)/models ## every benchmark with its targets, under ten minutes; docs/benchmarks.md
	$(BIN)/python -m benchmarks $(ARGS)

splits: $(STAMPS)/test ## split every graph of a folder, check the parts, measure what is left of the item's: make splits FOLDER=..
	$(BIN)/python -m benchmarks.split_check $(FOLDER) $(ARGS)

scoreboard: $(STAMPS)/test ## ours beside other optimizers, OpenVINO and IKBO; docs/benchmarks.md
	$(BIN)/python -m benchmarks.scoreboard $(ARGS)

providers: $(STAMPS)/test ## execution providers that load our outputs and agree with the CPU; docs/benchmarks.md
	$(BIN)/python -m benchmarks.providers $(ARGS)

serve-demo: $(STAMPS)/test ## a model in four ways behind HTTP: source, optimized, split, split with merged requests; docs/serving.md
	$(BIN)/python -m benchmarks.serve $(ARGS)

bench-gpu: $(STAMPS)/gpu $(STAMPS)/models ## on CUDA in ten minutes, parity first, float32 and float16; docs/gpu.json
	$(BIN)/python -m benchmarks.gpu $(ARGS)

audit: $(STAMPS)/test ## known vulnerabilities of what is installed
	$(BIN)/pip install -q pip-audit
	$(BIN)/pip-audit --skip-editable

# Versions with hashes, no address: the index is whichever pip is set up for.
pins: $(BIN)/python ## what CI installs, anew: requirements-ci.txt (takes minutes)
	$(BIN)/pip install -q pip-tools
	$(BIN)/pip-compile -q --upgrade --generate-hashes --no-header --strip-extras --allow-unsafe \
		--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-annotate \
		$(foreach extra,$(EXTRAS),--extra $(extra)) -o requirements-ci.txt setup.cfg

# Of what is committed alone, with times and permissions that do not depend on this machine.
wheel: $(STAMPS)/test ## the released wheel and sdist, in dist/, checked for an index; the same wheel from the same commit
	rm -rf build/wheel && mkdir -p build/wheel
	umask 022 && git archive HEAD | tar -x --no-same-permissions -C build/wheel && \
		SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build --wheel --sdist --outdir dist build/wheel
	$(BIN)/python -m twine check --strict dist/*

clean: ## remove the environment and whatever was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Not quiet: what is downloaded the first time is large, and nobody should wait without knowing for what. Python compiles
# what it imports; to compile all of it takes longer than the demo.
$(STAMPS)/base: $(SETUP) | $(BIN)/python
	$(BIN)/pip install --no-compile -e .
	@mkdir -p $(STAMPS) && touch $@

# With PINS (a file of versions and hashes, as in CI) exactly what it says, else the newest.
$(STAMPS)/test: $(SETUP) $(PINS) | $(BIN)/python
ifdef PINS
	$(BIN)/pip install -q --require-hashes -r $(PINS)
	$(BIN)/pip install -q --no-deps -e .
else
	$(BIN)/pip install -q -e '.[$(subst $(space),$(comma),$(EXTRAS))]'
endif
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/base

$(STAMPS)/gpu: $(STAMPS)/test
	$(BIN)/pip install -q -e '.[cuda]'
	@touch $@

# The Python backend of the wheel's release wants numpy 1. The models run in an environment of their own.
TRITON := .venv-triton
$(STAMPS)/triton: $(SETUP)
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/pip install -q nvidia-pytriton==0.7.0 numpy==1.26.4 pyarrow==17.0.0 -e '.[serving]'
	@mkdir -p $(STAMPS) && touch $@

# torch first: a range would bring a build with several GB of CUDA.
$(STAMPS)/models: $(SETUP) | $(BIN)/python
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -e '.[models]'
	@mkdir -p $(STAMPS) && touch $@ $(STAMPS)/base

# The package's own dependencies are loose enough to bring another torch.
$(STAMPS)/interop: $(STAMPS)/models
	$(BIN)/pip install -q --no-deps deepctr-torch==0.3.0
	$(BIN)/pip install -q -e '.[models,interop]'
	@touch $@

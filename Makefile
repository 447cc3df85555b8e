# Everything runs from .venv, which the first target that needs it makes.
# A user with a GPU: make demo CONSTRAINTS=my-constraints.txt (or CONSTRAINTS=/dev/null for the newest of everything).
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev
BIN := .venv/bin
INSTALLED := .venv/installed
# JSON lines are always written; no target here talks to a server.
export WANDB_MODE ?= offline
export HF_HUB_OFFLINE ?= 1
scripts = $(wildcard $(patsubst %,benchmarks/%.py,$(1)))

.PHONY: help demo test test-all lint smoke sweep-smoke report gpu-wheels gpu-check interop-check faults fuzz \
	docs docs-serve release-check test-lowest test-newest bench bench-peers bench-sweep tiny-model clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e '.[$(EXTRAS)]'
	touch $@

.peers/installed: $(INSTALLED) benchmarks/requirements-peers.txt
	$(BIN)/pip install -q --no-deps --upgrade --target .peers -r benchmarks/requirements-peers.txt
	touch $@

demo: $(INSTALLED) ## the main job: a 12-point sweep on the bundled language model, evaluated, with a report
	$(BIN)/sae sweep demo
	$(BIN)/sae report runs/demo

test: $(INSTALLED) ## the fast tests
	$(BIN)/python -m pytest -q

test-all: $(INSTALLED) ## every test but those that need a GPU; SLURM and browser tests need tests/slurm/start_slurm.sh and chromium
	$(BIN)/python -m pytest -q -m 'not gpu and not peers'

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

smoke: $(INSTALLED) ## train, evaluate and report one small point in seconds
	$(BIN)/sae train experiment=three_features name=smoke train=quick tracker=jsonl
	$(BIN)/sae eval runs/smoke
	$(BIN)/sae report runs/smoke

sweep-smoke: $(INSTALLED) ## a small sweep in seconds
	$(BIN)/sae sweep smoke

report: $(INSTALLED) ## the report of RUNS (default runs/demo)
	$(BIN)/sae report $(or $(RUNS),runs/demo)

interop-check: .peers/installed ## exported SAEs through the real SAELens, dictionary_learning and sparsify
	PYTHONPATH=.peers $(BIN)/python -m pytest -q -m peers tests/interop

faults: $(INSTALLED) ## 125 kills at random moments, 2,250 flipped bits and cut files, full disks and other faults (30 minutes)
	SAE_KILLS=25 SAE_FLIPS=150 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m slow tests/faults

fuzz: $(INSTALLED) ## every parser on 10,000 mutated inputs, and on 10,000 by coverage if atheris is installed (40 minutes, 2 cores)
	$(BIN)/python -m tests.fuzz.run

release-check: $(INSTALLED) ## sdist and wheel, installed with their own libraries in a new environment and used (5 minutes)
	bash tests/wheel.sh clean

test-lowest: ## the fast tests with the lowest versions that pyproject.toml allows, but for torch (15 minutes)
	bash tests/with_versions.sh lowest

test-newest: ## the fast tests with the newest version of every library but torch (15 minutes)
	bash tests/with_versions.sh newest

gpu-wheels: $(INSTALLED) ## what gpu-check needs beside torch and pytest, into .whl, for a GPU machine without a network
	$(BIN)/pip wheel -q --no-deps -w .whl -c $(CONSTRAINTS) hydra-core omegaconf antlr4-python3-runtime

gpu-check: ## the GPU tests and the GPU benchmark, from a checkout, with PYTHON as it is (no .venv) and the wheels of .whl
	if ls .whl/*.whl; then $(PYTHON) -m pip install -q --no-index --no-deps --upgrade --target .whl/site .whl/*.whl; fi
	export TRITON_INTERPRET=0 PYTHONPATH=.:.whl/site; $(PYTHON) -m pytest -q -m gpu tests/gpu \
	&& $(PYTHON) benchmarks/gpu.py --out benchmarks/results/gpu.json

docs: $(INSTALLED) ## the documentation as a site that needs no network, into site/
	$(BIN)/python -m mkdocs build --strict

docs-serve: $(INSTALLED) ## the same on http://127.0.0.1:8000, built again when a file changes
	$(BIN)/python -m mkdocs serve

bench: $(INSTALLED) ## what benchmarks/ measures, into benchmarks/results and docs/scaling.md (15 minutes, quiet machine)
	for file in $(call scripts,step cache_write penalties dashboard report_500 scaling); do \
		$(BIN)/python $$file --out benchmarks/results/$$(basename $$file .py).json || exit 1; done
	$(BIN)/python benchmarks/scaling.py --from benchmarks/results/scaling.json --write docs/scaling.md

bench-peers: .peers/installed ## the same for dictionary_learning, sparsify and SAELens, which go into .peers (5 minutes)
	for file in $(call scripts,step_peers cache_read); do \
		PYTHONPATH=.peers $(BIN)/python $$file --out benchmarks/results/$$(basename $$file .py).json || exit 1; done

bench-sweep: $(INSTALLED) ## wall time of an 8-point sweep as one stack against eight single commands
	$(BIN)/python benchmarks/stack_against_singles.py

tiny-model: $(INSTALLED) ## train the bundled language model again (about 20 minutes on one core)
	$(BIN)/python -m tools.train_tiny

clean: ## remove the environment and build folders, never runs or caches
	rm -rf .venv build dist site *.egg-info

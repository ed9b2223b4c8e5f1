# Works with the GNU make 3.81 of macOS. Needs Python 3.11+ and make, nothing else.
# PYTHON=path chooses another interpreter; ARGS="..." goes to the command that is run.

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
PYTHONS := $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python
PACKAGES := schemas learning actors daemon benchmarks examples tests
TYPED := schemas learning actors daemon benchmarks $(wildcard examples/*.py)
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url

export PYTHONUNBUFFERED := 1

.PHONY: quality-drift quality-months help demo test check format lock bench quality-events quality-graph quality-images \
	test-faults docs env servers clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

demo: env servers ## replay a year of flights; ARGS=--keep leaves all of it running
	$(BIN)/afresh demo $(ARGS)

test: env servers ## the whole suite on local servers; ARGS="-k sink" picks some
	$(BIN)/python -m pytest $(ARGS)

check: env ## what CI runs before the tests: ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(TYPED)

format: env ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env servers ## measure speed and size; writes build/bench.json
	$(BIN)/python -m benchmarks.bench $(ARGS)

quality-events: env servers ## measure what the embeddings know; AFRESH_DATA names the data folder
	@test -n "$$AFRESH_DATA" || { echo "Say where the data are: make $@ AFRESH_DATA=folder" >&2; exit 2; }
	$(BIN)/python -m benchmarks.quality_events $(ARGS)

quality-graph: env ## measure what a graph's model knows; AFRESH_DATA names the data folder, ARGS parts
	$(BIN)/python -m benchmarks.quality_graph $(ARGS)

quality-images: env ## measure what vectors of images know; AFRESH_DATA names the data folder, ARGS parts, FULL=1 all of it
	$(BIN)/python -m benchmarks.quality_images $(if $(FULL),--full) $(ARGS)

quality-drift: env ## measure false alarms and delays; AFRESH_DATA names the data folder, ARGS streams
	$(BIN)/python -m benchmarks.quality_drift $(ARGS)

quality-months: env ## measure what months of learning are worth; AFRESH_DATA names the data folder
	$(BIN)/python -m benchmarks.quality_months $(ARGS)

test-faults: env servers ## an hour of every fault, for many rounds; ARGS="kill-daemon …" picks some
	$(BIN)/python -m benchmarks.faults $(ARGS)

docs: env ## write docs/metrics.md's table and Grafana's dashboard anew from the code
	$(BIN)/python -m daemon.generated

lock: env ## pin the newest versions anew; then: make servers test
	$(LOCK) --upgrade --extra dev pyproject.toml -o requirements.txt
	echo uv | $(LOCK) --upgrade - -o deploy/requirements-uv.txt
	printf 'torch-geometric\ntorch\n' | $(LOCK) --upgrade --constraint requirements.txt - \
	  -o benchmarks/requirements-tgn.txt
	printf 'lightly\ntimm\ntorch\ntorchvision\n' | $(LOCK) --upgrade --constraint requirements.txt - \
	  -o benchmarks/requirements-lightly.txt
	printf 'alibi-detect>=0.13\nevidently\ntorch\n' | $(LOCK) --upgrade - -o benchmarks/requirements-drift.txt
	$(BIN)/python -m daemon.jars lock

env: $(VENV)/.afresh ## create .venv with every pinned package

servers: env ## fetch and verify Kafka's jars
	@$(BIN)/python -m daemon.jars

clean: ## remove .venv, build/ and caches
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find $(PACKAGES) -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/.python:
	@for python in $(PYTHONS); do \
	  command -v "$$python" >/dev/null 2>&1 || continue; \
	  "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
	    2>/dev/null || continue; \
	  "$$python" -c 'import venv, ensurepip' 2>/dev/null || { missing="$$python"; continue; }; \
	  echo "Creating $(VENV) with $$("$$python" --version)."; \
	  "$$python" -m venv --clear $(VENV) && touch $@ && exit 0; \
	  missing="$$python"; \
	done; \
	if [ -n "$$missing" ]; then \
	  echo "$$missing cannot create virtual environments: its venv module is missing." >&2; \
	  echo "On Debian or Ubuntu: apt-get install python3-venv. Then make again." >&2; \
	else \
	  echo "No Python 3.11 to 3.14 was found; tried: $(PYTHONS)." >&2; \
	  echo "Install one (apt-get install python3 python3-venv, or brew install python@3.13)," >&2; \
	  echo "or name it: make PYTHON=/path/to/python3. Then make again." >&2; \
	fi; exit 1

$(VENV)/.uv: $(VENV)/.python deploy/requirements-uv.txt
	@echo "Installing uv."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  --only-binary :all: -r deploy/requirements-uv.txt
	@touch $@

# sync, not install: what an older requirements.txt brought goes away again.
$(VENV)/.requirements: $(VENV)/.uv requirements.txt
	@echo "Installing the packages of requirements.txt (3 GB to download the first time)."
	@$(UV) pip sync --python $(BIN)/python --require-hashes --build-constraints requirements.txt \
	  --compile-bytecode requirements.txt
	@touch $@

$(VENV)/.afresh: $(VENV)/.requirements pyproject.toml
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

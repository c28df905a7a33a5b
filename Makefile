# Two commands on a fresh machine with python3 (3.11 or newer), python3-venv, git and make:
#   make demo    the whole system for some seconds, then a report
#   make test    all tests; of a few long proofs a short version
#   make proof   those whole
# Everything runs interpreted, from the tree. With a C compiler and Python's headers `make bench` and `make test-compiled`
# run a copy whose hot path is compiled, build/compiled: made when it is missing, and anew when a source has changed.
# Both make .venv when it is missing, and start their own PostgreSQL and Valkey.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.complete
PRODUCT := config fermata_client tasks worker
PACKAGES := $(PRODUCT) tests benchmarks
COMPILED := $(CURDIR)/build/compiled
# Before the tree, which stands in the environment's own list and would else come from the folder we are in.
ON_COMPILED := PYTHONSAFEPATH=1 PYTHONPATH=$(COMPILED)

# Set on some machines; then every start of Python would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help demo test proof check up bench compiled test-compiled fuzz audit chaos lock clean
.DEFAULT_GOAL := help

help:
	@echo "make demo | test | check | proof | up | bench [ONLY=name,name] [ROUNDS=5] [INTERPRETED=1] | compiled | test-compiled | fuzz | audit [WRITE=1] | chaos [PROFILE=smoke|full|soak|mutants|control] [SEED=n] [MINUTES=n] [UNTIL=n] [WRITE=1] | lock | clean"

demo: $(STAMP)
	@exec $(BIN)/fermata demo

# Unit tests need no servers and answer within seconds, so they come first. The others wait for processes a third of
# their time: three at a time keep two cores busy.
test: $(STAMP)
	@$(BIN)/pytest -q -n 2 --dist worksteal tests/unit
	@$(BIN)/pytest -q -n 3 --dist worksteal tests --ignore=tests/unit

# What `make test` has in short: more stories, every crash point by itself, the way back to the release before.
proof: $(STAMP)
	@$(BIN)/pytest -q -n 3 --dist worksteal -m proof --whole tests

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: run .venv/bin/ruff format" >&2; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/pytest -q -n 0 tests/test_layers.py

up: $(STAMP)
	@exec $(BIN)/fermata up

bench: $(STAMP)
	@$(BIN)/python -c 'import nostro, psycopg_pool' 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,bench]'
	@if [ -z "$(INTERPRETED)" ] && $(BIN)/python hatch_build.py; then \
	  $(MAKE) --no-print-directory compiled && $(ON_COMPILED) $(BIN)/python -m benchmarks "ONLY=$(ONLY)"; \
	else $(BIN)/python -m benchmarks "ONLY=$(ONLY)"; fi

compiled: $(COMPILED)/.complete

# A whole copy, as a wheel has it: nothing compiled ever lies beside a source that somebody edits.
$(COMPILED)/.complete: $(STAMP) hatch_build.py $(shell find $(PRODUCT) -name __pycache__ -prune -o -print 2>/dev/null)
	@echo "compiling the hot path (half a minute)"
	@rm -rf $(COMPILED)
	@HATCH_BUILD_HOOK_ENABLE_CUSTOM=true $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation \
	  --target $(COMPILED) .
	@touch $@

# The tests of what is compiled, on the compiled build: `append` leaves it before the tree.
test-compiled: compiled
	@$(ON_COMPILED) $(BIN)/fermata --version | grep compiled
	@$(ON_COMPILED) $(BIN)/pytest -q -n 2 --import-mode=append tests/unit/credits tests/unit/test_compiled.py
	@$(ON_COMPILED) $(BIN)/pytest -q -n 3 --dist worksteal --import-mode=append \
	  $(patsubst %,tests/integration/test_%.py,books group_commit known_settles interleavings credits_in_time credits_machine \
	  credits_races leases leases_machine notices refusals subscriptions driver batch_plans)

# New inputs from strangers, for a minute or two: those of `make test` are always the same few.
fuzz: $(STAMP)
	@$(BIN)/pytest -q -n 2 --hypothesis-profile=fuzz tests/unit/test_fuzz.py

# The versions that we pin, against the known vulnerabilities; recorded as not run where their list can't be reached.
audit: $(STAMP)
	@$(BIN)/python -m tests.dependencies $(if $(WRITE),--write)

# Real processes under load while an adversary does its worst; see docs/PROOF.md.
chaos: $(STAMP)
	@exec $(BIN)/python -m tests.chaos --profile $(or $(PROFILE),smoke) $(if $(SEED),--seed $(SEED)) $(if $(UNTIL),--until $(UNTIL)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(WRITE),--write)

# The stamp is written last, so that an environment that was only half made is never taken for a whole one.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Python 3.11 or newer is needed as python3: apt-get install python3, or make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf .venv; $(PYTHON) -m venv .venv >/dev/null 2>&1; } \
	  || { rm -rf .venv; echo "python3 can't make a virtual environment: apt-get install python3-venv" >&2; exit 1; }
	@echo "making .venv (a minute, once)"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]' \
	  || { rm -rf .venv; echo "the packages could not be installed, see above; .venv was removed" >&2; exit 1; }
	@$(BIN)/python -m compileall -qq .venv/lib $(PACKAGES) || true
	@touch $@

# The newest versions that pyproject.toml allows, pinned: names and versions only, no addresses. `async-timeout` is what
# redis needs before Python 3.11.3, whichever Python locks; `--all` has setuptools, too.
lock:
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip install --quiet -e '.[dev,bench]' async-timeout; \
	"$$folder/venv/bin/python" -m pip freeze --all --exclude-editable --exclude pip > "$$folder/frozen"; \
	if grep -E '@|://' "$$folder/frozen"; then echo "these were installed from an address: not locked" >&2; exit 1; fi; \
	"$$folder/venv/bin/python" -m pip install --quiet --dry-run --report "$$folder/torch" -c "$$folder/frozen" '.[torch]'; \
	"$$folder/venv/bin/python" -m tests.dependencies --pins "$$folder/torch" > "$$folder/frozen-torch"; \
	cp "$$folder/frozen" constraints.txt; cp "$$folder/frozen-torch" constraints-torch.txt

clean:
	@if [ -e .fermata/lock ]; then flock -n .fermata/lock true || { echo "fermata is running here: stop it first" >&2; exit 1; }; fi
	@if [ -L .fermata/postgres/elsewhere ]; then rm -rf "$$(readlink .fermata/postgres/elsewhere)"; fi
	@rm -rf .venv .fermata $(COMPILED) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find $(PACKAGES) -name __pycache__ -prune -exec rm -rf {} +

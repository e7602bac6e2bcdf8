# `make help` lists the targets. Needs Python 3.10 or later with venv, a C++17 compiler and a
# package index; everything else goes into $(VENV).

PYTHON ?= python3
VENV ?= .venv
# What `make environment` installs besides the package index's own needs: a requirement or a wheel.
REQUIREMENT ?= --editable .

BIN := $(VENV)/bin
NATIVE := $(shell find csrc -name '*.cpp' -o -name '*.cuh' -o -name '*.h' -o -name '*.cu')
# Without its extension a source tree cannot run, so a missing one always rebuilds.
EXTENSION := $(if $(wildcard fastguide/_C.*so fastguide/_C.*pyd),,rebuild)

# $(call environment,FOLDER,REQUIREMENT): the only place that creates an environment or calls pip.
define environment
	@echo "== $(1): installing $(2) (the first time takes a few minutes)"
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt $(2)
endef

# One environment, one pip at a time.
.NOTPARALLEL:

.PHONY: help demo test test-all test-packaging lint bench gpu-check wheel sanitize clean environment rebuild

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.stamp-demo ## design 5'UTRs with the shipped models; writes out/demo/report.html
	$(BIN)/fastguide demo --out out/demo

test: $(VENV)/.stamp-test ## run the tests (minutes)
	$(BIN)/python -m pytest -m "not slow and not gpu and not packaging" --durations 10

test-all: $(VENV)/.stamp-test ## run every test that this machine can run, the slow ones too
	$(BIN)/python -m pytest

test-packaging: $(VENV)/.stamp-test ## build sdist and wheel, install the wheel elsewhere, sample from it
	$(BIN)/python -m pytest -m packaging tests/test_packaging.py

lint: $(VENV)/.stamp-test ## ruff, mypy, and a search for framework headers where they may not be
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@if grep -rnE 'torch|ATen|c10|pybind11|Python\.h' csrc/include; then \
		echo "csrc/include must stay free of torch and Python (see above)"; exit 1; fi
	@rm -rf build/typed && mkdir -p build/typed
	@cp -Rp fastguide build/typed/fastguide && cp -Rp kernels build/typed/fastguide/kernels
	cd build/typed && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml \
		--cache-dir ../mypy-cache -p fastguide

bench: $(VENV)/.stamp-bench ## time everything on one thread; keeps benches/results/MACHINE/*.json
	@mkdir -p out
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest benches --benchmark-json out/bench.json

gpu-check: ## GPU tests and benches with what PYTHON has installed, no registry; out/gpu-check.json
	$(PYTHON) benches/gpu_check.py --out out/gpu-check.json

wheel: $(VENV)/.stamp-test ## build sdist and wheel into dist/
	$(BIN)/python -m build --outdir dist

sanitize: ## run the C++ tests under AddressSanitizer and UBSan
	@mkdir -p build
	$(CXX) -std=c++17 -O1 -g -fopenmp -ffp-contract=off -Wall -Wextra -Werror \
		-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer \
		-Icsrc/include csrc/tests/*.cpp csrc/cpu/*.cpp -o build/test_kernels
	@set -e; for level in baseline avx2 avx512; do \
		if [ $$level != baseline ] && ! grep -qs $$level /proc/cpuinfo; then continue; fi; \
		FASTGUIDE_CPU=$$level OMP_NUM_THREADS=2 ./build/test_kernels; \
	done

clean: ## remove everything that was built, but not $(VENV)
	rm -rf build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
	rm -f fastguide/_C.*so fastguide/_C.*pyd
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

environment: ## create VENV and install REQUIREMENT into it
	$(call environment,$(VENV),$(REQUIREMENT))

# The package itself: again whenever what is compiled, or how, has changed.
$(VENV)/.stamp-package: pyproject.toml setup.py constraints.txt $(NATIVE) $(EXTENSION)
	$(call environment,$(VENV),--editable .)
	@touch $@

# An extra's dependencies: the package stays as it is installed.
$(VENV)/.stamp-%: $(VENV)/.stamp-package
	$(call environment,$(VENV),"fastguide[$*]")
	@touch $@

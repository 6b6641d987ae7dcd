# `make demo` and `make test` set themselves up: nothing but Python 3.11+ and make is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_DIR ?= runs/demo
STAMP := $(VENV)/.installed

.PHONY: help install check format test test-plain test-reference test-interpreter test-aot test-asan test-builds \
	test-versions test-dali test-torchcodec aot cuda-report demo clean

help:
	@echo "make demo     pretrain, evaluate and report on a small generated set (two CPU cores: about 10 minutes)"
	@echo "make test     the whole test suite"
	@echo "make check    lint, format and type checks"
	@echo "make aot      compile every Triton kernel for sm_80, sm_90, sm_100 and check its budget (no GPU needed)"
	@echo "make cuda-report  compile csrc/cuda for the same and check what each kernel needs (nvcc, no GPU needed)"
	@echo "make test-asan, test-builds   the native kernels under AddressSanitizer; every way to build the package"
	@echo "make test-versions TORCH=2.15.0   the suite beside another torch, in .venv-2.15.0 (gigabytes)"
	@echo "make test-dali, test-torchcodec   the optional decoders, which are installed for it (DALI: 700 MB)"
	@echo "make install  only the virtual environment ($(VENV))"

# torch comes first, from the constraints file: what follows then finds it satisfied, and compiles against its headers;
# an isolated build would download it once more.
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard csrc/*/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch setuptools wheel ninja
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[train,dev]'
	@touch $@

install: $(STAMP)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: test-plain test-reference test-interpreter test-aot

# A process for each of two cores; files stay whole, so that what a file's tests share is made once.
test-plain: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The ops once more without their native kernels.
test-reference: $(STAMP)
	MAEKERNELS_NATIVE=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/ops

test-asan: $(STAMP)
	PYTHON=$(BIN)/python tests/install/asan.sh

test-builds: $(STAMP)
	PYTHON=$(BIN)/python tests/install/builds.sh

# Not in CI: torch's other builds take gigabytes. PYTHON=python3.12 tests with what needs that, as PyAV 19 does.
test-versions: $(STAMP)
	BUILDER=$(BIN)/python PYTHON=$(PYTHON) tests/install/versions.sh $(TORCH)

test-dali: $(STAMP)
	PYTHON=$(BIN)/python tests/install/decoder.sh dali

test-torchcodec: $(STAMP)
	PYTHON=$(BIN)/python tests/install/decoder.sh torchcodec

# Triton decides at import whether kernels are interpreted, and the gate replaces its driver: own processes.
test-interpreter: $(STAMP)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpreter

test-aot: $(STAMP)
	MAEKERNELS_AOT=1 $(BIN)/python -m pytest -n 2 tests/aot

aot: $(STAMP)
	$(BIN)/python tests/aot/gate.py

cuda-report: $(STAMP)
	$(BIN)/python tests/csrc/resources.py

demo: $(STAMP)
	$(BIN)/python -m diffmavil.train --run-dir $(DEMO_DIR) --resume
	$(BIN)/python -m diffmavil.evaluate --run-dir $(DEMO_DIR)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache

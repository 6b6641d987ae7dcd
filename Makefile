# `make demo` and `make test` set themselves up: nothing but Python 3.11+ and make is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_DIR ?= runs/demo
# A run that has begun goes on with its own settings.
DEMO_PRESET = $(if $(wildcard $(DEMO_DIR)/config.yaml),,diffmavil-tiny-fast)
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
SITE := $(VENV)/docs/.installed

.PHONY: help install check format test test-plain test-reference test-interpreter test-aot test-asan test-builds \
	test-versions test-dali test-torchcodec test-transformers test-hub aot cuda-report wheel hub docs demo clean

help:
	@echo "make demo     pretrain, evaluate and report on a small generated set (two CPU cores: 8 minutes)"
	@echo "make test     what every change must pass"
	@echo "make check    lint, format and type checks"
	@echo "make aot      compile every Triton kernel for sm_80, sm_90, sm_100 and check its budget (no GPU needed)"
	@echo "make cuda-report  compile csrc/cuda for the same and check what each kernel needs (nvcc, no GPU needed)"
	@echo "make test-asan, test-builds   the native kernels under AddressSanitizer; every way to build the package"
	@echo "make test-versions TORCH=2.15.0   the suite beside another torch, in .venv-2.15.0 (gigabytes)"
	@echo "make test-dali, test-torchcodec   the optional decoders, which are installed for it (DALI: 700 MB)"
	@echo "make test-transformers   with transformers in both its generations, timm, ONNX, wandb, MLflow and parquet"
	@echo "make test-hub  the kernel Hub's repository, loaded by Hugging Face's package kernels, which is installed for it"
	@echo "make wheel, make hub   sdists and wheels into dist/; the repository for the kernel Hub into dist/hub"
	@echo "make docs     the site of docs/ into build/site, strictly: no link to nothing, nothing loaded from elsewhere"
	@echo "make install  only the virtual environment ($(VENV))"

# torch comes first, from the constraints file: what follows then finds it satisfied, and compiles against its headers;
# an isolated build would download it once more.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# What an extra of pyproject.toml asks for, a requirement in each line.
extra = -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*project["optional-dependencies"]["$(1)"], sep="\n")'
SOURCES := pyproject.toml kernels/pyproject.toml kernels/setup.py constraints.txt $(wildcard csrc/*/*)

$(STAMP): $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools wheel ninja
	$(PIP) --no-build-isolation -e kernels -e '.[train]'
	@touch $@

# What tests and checks need, and the demo does not. `pip install -e '.[dev]'` would build the package once more.
$(DEV): $(STAMP)
	$(BIN)/python $(call extra,dev) > $(VENV)/dev.txt
	$(PIP) -r $(VENV)/dev.txt
	@touch $@

# An environment of its own: docstrings are read, not run, so the site needs no torch.
$(SITE): pyproject.toml constraints.txt
	test -x $(VENV)/docs/bin/python || $(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/python $(call extra,docs) > $(VENV)/docs/docs.txt
	$(VENV)/docs/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $(VENV)/docs/docs.txt
	@touch $@

install: $(DEV)

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: test-plain test-reference test-interpreter test-aot

# A process for each of two cores; files stay whole, so that what a file's tests share is made once.
test-plain: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The ops once more without their native kernels.
test-reference: $(DEV)
	MAEKERNELS_NATIVE=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/ops

test-asan: $(DEV)
	PYTHON=$(BIN)/python tests/install/asan.sh

test-builds: $(DEV)
	PYTHON=$(BIN)/python tests/install/builds.sh

# Not in CI: torch's other builds take gigabytes. PYTHON=python3.12 tests with what needs that, as PyAV 19 does.
test-versions: $(STAMP)
	BUILDER=$(BIN)/python PYTHON=$(PYTHON) tests/install/versions.sh $(TORCH)

test-dali: $(DEV)
	PYTHON=$(BIN)/python tests/install/decoder.sh dali

test-torchcodec: $(DEV)
	PYTHON=$(BIN)/python tests/install/decoder.sh torchcodec

test-transformers: $(DEV)
	PYTHON=$(BIN)/python tests/install/transformers.sh

test-hub: $(DEV)
	PYTHON=$(BIN)/python tests/install/hub.sh

# Triton decides at import whether kernels are interpreted, and the gate replaces its driver: own processes.
test-interpreter: $(DEV)
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/interpreter

test-aot: $(DEV)
	MAEKERNELS_AOT=1 $(BIN)/python -m pytest -n 2 tests/aot

aot: $(DEV)
	$(BIN)/python tests/aot/gate.py

cuda-report: $(DEV)
	$(BIN)/python tests/csrc/resources.py

wheel: $(STAMP)
	PYTHON=$(BIN)/python .ci/wheel dist

hub: $(STAMP)
	$(BIN)/python kernels/hub/make.py dist/hub $(if $(REPOSITORY),--repository $(REPOSITORY))

# Not --quiet: warnings that are not shown are not counted, and only counted ones end a strict build.
docs: $(SITE)
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --strict

demo: $(STAMP)
	$(BIN)/python -m diffmavil.train $(DEMO_PRESET) --run-dir $(DEMO_DIR) --resume --train.steps 875 \
		--train.no-report
	@test -e $(DEMO_DIR)/model.safetensors || \
		{ echo "the training was stopped before its end: make demo goes on from where it was" >&2; exit 1; }
	$(BIN)/python -m diffmavil.evaluate --run-dir $(DEMO_DIR)

clean:
	rm -rf $(VENV) build dist *.egg-info kernels/build kernels/*.egg-info .pytest_cache .ruff_cache

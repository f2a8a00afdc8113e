# What a newcomer runs; `make` alone lists the targets.
#
# Every target makes the environment .venv by itself: once, and again when its lock file changes. It needs Python
# 3.11, 3.12 or 3.13, which is looked for by name, or named: `make demo PYTHON=/path/to/python3.12`.
# `make parity` makes a second one, .venv-parity, with PyTorch and OGGM.
# The environment holds TensorFlow's CPU build or its GPU build, never both: `make .venv TENSORFLOW=gpu` makes it
# anew with the other, and later calls keep the one that is there.

TENSORFLOW ?= $(if $(wildcard .venv/.ready-gpu),gpu,cpu)
PYTHON ?=
export PYTHON

ifeq ($(TENSORFLOW),gpu)
ifneq ($(shell uname -s),Linux)
$(error TENSORFLOW=gpu needs Linux (or WSL 2 on Windows), this is $(shell uname -s): leave it out for the CPU build)
endif
else ifneq ($(TENSORFLOW),cpu)
$(error TENSORFLOW is "$(TENSORFLOW)", expected cpu (the default) or gpu)
endif

python := .venv/bin/python
# Written last, so that an interrupted installation is begun again; it lies inside .venv and goes with it.
ready := .venv/.ready-$(TENSORFLOW)

parity_python := .venv-parity/bin/python
parity_ready := .venv-parity/.ready
# Where PyTorch's CPU build is: the registry's own for Linux wants gigabytes of CUDA libraries, and the lock file has
# none. Where pip's configuration knows a place of its own: `make parity PYTORCH_INDEX=`.
PYTORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: help .venv .venv-parity demo test lint format parity bench lock

help:  ## this list
	@awk -F ':.*##  *' '/^[a-z.]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: .venv  ## synthetic tiles, a small GlaViTU trained on them, its prediction, a picture and the scores by region
	$(python) prepare.py synthetic demo --overwrite --train 64 --val 16 --test 24 --size 128
	$(python) train.py -r demo -n demo --data demo --overwrite
	$(python) predict.py -n demo
	$(python) evaluate.py -n demo --baseline --picture

test: .venv  ## all tests
	$(python) -m pytest --numprocesses 2 --dist loadfile

lint: .venv  ## style, docstrings, types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

format: .venv  ## put the code into the project's style
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

parity: .venv .venv-parity  ## PyTorch models against their references, live, on random weights; outlines given to OGGM
	$(python) -m benchmarks.parity
	$(python) -m benchmarks.oggm

bench: .venv  ## speed of data, training, engines, mapping and every architecture (writes docs/zoo.md); leave the machine alone
	$(python) -m benchmarks.storage
	$(python) -m benchmarks.pipeline
	$(python) -m benchmarks.training
	$(python) -m benchmarks.engines
	$(python) -m benchmarks.overlap
	$(python) -m benchmarks.mapping
	$(python) -m benchmarks.distribution
	@if [ -e $(parity_ready) ]; then set -x; $(python) -m benchmarks.pytorch; \
	else echo "Not compared with PyTorch: \`make .venv-parity\` makes the environment that it takes."; fi
	@echo "These tables belong into docs/performance.md."
	$(python) -m benchmarks.zoo

# The other files are held to the first: the environments differ in TensorFlow or PyTorch and what they bring alone.
compile := $(python) -m uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 \
	--no-emit-index-url --no-annotate --custom-compile-command "make lock" pyproject.toml

lock: .venv  ## pin the latest versions that pyproject.toml allows
	$(compile) --extra dev --extra cpu --output-file requirements-cpu.lock
	$(compile) --extra dev --extra gpu --constraints requirements-cpu.lock --output-file requirements-gpu.lock
	$(compile) --extra parity --constraints requirements-cpu.lock --output-file requirements-parity.lock

.venv: $(ready)  ## the environment; TENSORFLOW=gpu for TensorFlow's GPU build

.venv-parity: $(parity_ready)

# A name on the PATH may be a launcher without a Python behind it: each candidate is run, not only looked up.
# $(1): the folder of the environment, $(2): what is in it.
define environment
	@if [ -n "$$PYTHON" ]; then set -- "$$PYTHON"; else set -- python3.13 python3.12 python3.11 python3; fi; \
	found=; \
	for python in "$$@"; do \
		if ! command -v "$$python" >/dev/null; then \
			is="not found"; \
		elif ! version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then \
			is="found, but it does not run"; \
		else case "$$version" in 3.11|3.12|3.13) \
			if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
				echo "Making $(1) with $$python (Python $$version), $(2): some minutes, once."; \
				exec "$$python" -m venv --clear $(1); \
			fi; \
			is="Python $$version without venv (Debian, Ubuntu: apt install python$$version-venv)";; \
		*) \
			is="Python $$version";; \
		esac; fi; \
		found="$$found  $$python: $$is\n"; \
	done; \
	printf 'error: Python 3.11, 3.12 or 3.13 is needed to make $(1). Found:\n%b' "$$found" >&2; \
	echo "Install one of the three, or say where it is: make $(1) PYTHON=/path/to/python3.12" >&2; \
	exit 2
endef

# Installed by pip, which is there with Python and reads the user's own configuration (mirrors, proxies, wheels);
# --no-deps, because the lock file is complete: nothing that it does not pin can come in. `pip check` proves it.
install := -m pip install --disable-pip-version-check --no-input --no-deps

$(ready): requirements-$(TENSORFLOW).lock
	$(call environment,.venv,TensorFlow's $(TENSORFLOW) build)
	$(python) $(install) --requirement $<
	$(python) -m pip check
	@touch $@

# The CPU builds count as later than the registry's of the same version, so that pip takes them where they are.
$(parity_ready): requirements-parity.lock
	$(call environment,.venv-parity,PyTorch)
	$(parity_python) $(install) --constraint $< $(PYTORCH_INDEX:%=--extra-index-url %) torch torchvision
	$(parity_python) $(install) --requirement $<
	$(parity_python) -m pip check
	@touch $@

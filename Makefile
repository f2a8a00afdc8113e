# What a newcomer runs; `make` alone lists the targets.
#
# Every target makes the environment .venv by itself: once, and again when its lock file changes. It needs Python
# 3.11, 3.12 or 3.13, which is looked for by name, or named: `make demo PYTHON=/path/to/python3.12`.
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

.PHONY: help .venv demo test lint format bench lock

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

bench: .venv  ## speed of data, training and every architecture (writes docs/zoo.md); leave the machine alone
	$(python) -m benchmarks.pipeline
	$(python) -m benchmarks.training
	@echo "These tables belong into docs/performance.md."
	$(python) -m benchmarks.zoo

# The second file is held to the first: the two environments differ in TensorFlow and what it brings, nothing else.
compile := $(python) -m uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 \
	--no-emit-index-url --no-annotate --custom-compile-command "make lock" pyproject.toml --extra dev

lock: .venv  ## pin the latest versions that pyproject.toml allows
	$(compile) --extra cpu --output-file requirements-cpu.lock
	$(compile) --extra gpu --constraints requirements-cpu.lock --output-file requirements-gpu.lock

.venv: $(ready)  ## the environment; TENSORFLOW=gpu for TensorFlow's GPU build

# A name on the PATH may be a launcher without a Python behind it: each candidate is run, not only looked up.
# Installed by pip, which is there with Python and reads the user's own configuration (mirrors, proxies, wheels);
# --no-deps, because the lock file is complete: nothing that it does not pin can come in. `pip check` proves it.
$(ready): requirements-$(TENSORFLOW).lock
	@if [ -n "$$PYTHON" ]; then set -- "$$PYTHON"; else set -- python3.13 python3.12 python3.11 python3; fi; \
	found=; \
	for python in "$$@"; do \
		if ! command -v "$$python" >/dev/null; then \
			is="not found"; \
		elif ! version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then \
			is="found, but it does not run"; \
		else case "$$version" in 3.11|3.12|3.13) \
			if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
				echo "Making .venv with $$python (Python $$version), TensorFlow's $(TENSORFLOW) build:" \
					"some minutes, once."; \
				exec "$$python" -m venv --clear .venv; \
			fi; \
			is="Python $$version without venv (Debian, Ubuntu: apt install python$$version-venv)";; \
		*) \
			is="Python $$version";; \
		esac; fi; \
		found="$$found  $$python: $$is\n"; \
	done; \
	printf 'error: Python 3.11, 3.12 or 3.13 is needed to make .venv. Found:\n%b' "$$found" >&2; \
	echo "Install one of the three, or say where it is: make .venv PYTHON=/path/to/python3.12" >&2; \
	exit 2
	$(python) -m pip install --disable-pip-version-check --no-input --no-deps --requirement $<
	$(python) -m pip check
	@touch $@

# Each target makes what it needs: a fresh machine has Python 3.11 or newer and make, nothing else.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check bench fuzz clean
.DELETE_ON_ERROR:

# TORCH_INDEX is an index that pip asks for torch beside those it is configured with; TORCH_INDEX= is none. Unless it is
# given, it is PyTorch's index of CPU builds where there is no NVIDIA GPU: PyPI's torch for Linux brings gigabytes of CUDA.
# It is asked first, for 5 seconds at most, because pip would try an index that does not answer again and again: a machine
# without network can have torch from elsewhere (PIP_FIND_LINKS, PIP_INDEX_URL).
CPU_INDEX := https://download.pytorch.org/whl/cpu
ASK := import signal, urllib.request as u; signal.alarm(5); u.urlopen(u.Request("$(CPU_INDEX)/torch/", method="HEAD"), timeout=3)
ifeq ($(origin TORCH_INDEX),undefined)
TORCH_INDEX = $(shell command -v nvidia-smi >/dev/null || \
	if $(PYTHON) -c '$(ASK)' 2>/dev/null; then echo $(CPU_INDEX); else \
	echo "$(CPU_INDEX) does not answer: torch comes from the indexes that pip knows (from PyPI: with CUDA)" >&2; fi)
endif

# bin/pip and not bin/python, which is there already when venv fails for want of ensurepip: the next try begins anew.
$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

# A stamp file says that an environment was installed from today's pyproject.toml and constraints.txt.
$(VENV)/.torch: $(VENV)/bin/pip constraints.txt
	$(PIP) $(addprefix --extra-index-url=,$(TORCH_INDEX)) torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) -e .
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[test]'
	touch $@ $(VENV)/.demo

$(VENV)/.dev: $(VENV)/.test
	$(PIP) -e '.[test,dev]'
	touch $@

demo: $(VENV)/.demo
	$(RUN) examples/demo.py

test: $(VENV)/.test
	$(RUN) -m pytest

check: $(VENV)/.dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

bench: $(VENV)/.test
	$(RUN) benchmarks/run.py
	$(RUN) docs/figures.py

fuzz: $(VENV)/.test
	$(RUN) fuzz/run.py
	$(RUN) docs/figures.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

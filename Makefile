# make demo    train on scikit-learn's digits, a minute on a CPU, nothing to download but packages
# make test    the fast tests, minutes; make test-all: all, also those that take longest
# make check   ruff, ruff format and mypy
# make coverage  the fast tests with line coverage
# make bench   speed against a plain version and against the machine's limit (benchmarks/)
# make paper   the paper's tables and figures on the digits, 5 seeds, hours on a core (benchmarks/paper)
#
# Each sets up .venv first. PYTHON=python3.12 picks another interpreter; PIP_INSTALL_FLAGS is passed to pip,
# e.g. PIP_INSTALL_FLAGS="--index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple"
# for PyTorch without CUDA.

PYTHON ?= python3
VENV ?= .venv
PIP_INSTALL_FLAGS ?=
RUN := $(VENV)/bin/python

.PHONY: demo test test-all coverage check bench paper clean

demo: $(VENV)/.ready
	$(RUN) main.py --cfgs configs/base.yaml configs/digits.yaml

test: $(VENV)/.ready-dev
	$(RUN) -m pytest -n 2

test-all: $(VENV)/.ready-dev
	$(RUN) -m pytest -n 2 -m "slow or not slow"

check: $(VENV)/.ready-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

coverage: $(VENV)/.ready-dev
	$(RUN) -m pytest -n 2 --cov=lib --cov=datasets --cov=models --cov=main --cov=and_discovery --cov-report=term

bench: $(VENV)/.ready
	$(RUN) -m benchmarks

paper: $(VENV)/.ready
	$(RUN) -m benchmarks.paper all --scale digits --seeds 5

# A marker is written only after pip succeeded, so an interrupted set-up is taken up again.
$(VENV)/.ready: requirements.txt
	$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_INSTALL_FLAGS) -r requirements.txt
	touch $@

$(VENV)/.ready-dev: requirements-dev.txt requirements-onnx.txt $(VENV)/.ready
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_INSTALL_FLAGS) -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV)

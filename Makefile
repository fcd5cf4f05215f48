# make demo [ONCE=1]   show a tunnel working, in an environment of its own (.venv)
# make test            everything that CI checks here: tox
# make bench           agents side by side; BENCH_ARGS=--quick: only whether it works (BENCHMARKS.md)
# make clean           remove what these made

VENV := .venv
BIN := $(VENV)/bin

# pyenv has a python3.x on PATH for every version it holds, but it runs only the selected ones; look
# behind it, or tox would skip the others.
BEHIND_PYENV := $(shell ls -d "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/*/bin 2>/dev/null \
	| grep -E '/3\.1[0-3]\.[0-9]+/bin$$' | sort -rV | paste -sd: -)
export PATH := $(if $(BEHIND_PYENV),$(BEHIND_PYENV):)$(PATH)

# The first that runs, is new enough and can make environments. Only looked for when one is made.
PYTHON = $(shell PATH='$(PATH)'; for name in python3.13 python3.12 python3.11 python3.10 python3; do \
	$$name -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	&& echo $$name && break; done)

.PHONY: demo test bench clean

demo: $(VENV)/.nexusg-installed
	$(BIN)/nexusg demo $(if $(ONCE),--once)

# setuptools would pack what an earlier build left there of modules since deleted.
test: $(VENV)/.tox-installed
	rm -rf build
	$(BIN)/tox run-parallel --parallel auto $(TOX_ARGS)

bench: $(VENV)/.nexusg-installed
	$(BIN)/python -m bench $(BENCH_ARGS)

clean:
	rm -rf $(VENV) .tox build dist nexusg.egg-info .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv installs, so an interrupted venv is made again.
$(BIN)/pip:
	@test -n '$(PYTHON)' || { echo 'nexusg needs Python 3.10 to 3.13 with venv and ensurepip' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Editable: a change to the source needs no new installation.
$(VENV)/.nexusg-installed: setup.py requirements.txt pyproject.toml nexusg/version.py | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[relay]'
	touch $@

$(VENV)/.tox-installed: requirements-dev.txt | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements-dev.txt tox
	touch $@

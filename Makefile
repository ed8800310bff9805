# Every target installs what it needs, from nothing; the second time that costs nothing.
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.installed

.PHONY: help install demo test chaos check bench fmt clean
help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

install: $(STAMP)  ## the environment in .venv, at the tested versions
$(STAMP): pyproject.toml constraints.txt
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@echo "installing into .venv (the first time this fetches torch: minutes)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fleet,digits,vision,report,search,dev]'
	@touch $@

demo: $(STAMP)  ## digits, end to end on Ray, with a report page: at most 3 minutes on 2 cores
	@$(PY) -m jobs.pipeline preset=demo scale=laptop out=runs/demo

test: $(STAMP)  ## the tests, the long fault rounds left out; those of fleet and jobs mostly wait, so they run beside the rest
	@log=$$(mktemp); $(PY) -m pytest tests/fleet tests/jobs > $$log 2>&1 & fleet=$$!; \
	$(PY) -m pytest --ignore=tests/fleet --ignore=tests/jobs; rest=$$?; \
	wait $$fleet; code=$$?; cat $$log; rm -f $$log; exit $$((rest | code))

chaos: $(STAMP)  ## the long fault rounds: kill and resume, many times
	@$(PY) -m pytest -m slow

check: $(STAMP)  ## ruff and mypy --strict
	@$(PY) -m ruff check .
	@$(PY) -m mypy

bench: $(STAMP)  ## every ratio we claim, measured here
	@$(PY) -m jobs.bench all

fmt: $(STAMP)  ## format and sort imports
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

clean:  ## caches and builds; runs/ and .venv stay
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .cache

# Two commands on a fresh machine: `make recall` and `make test`. Both make the environment first, once.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: recall test
recall: $(READY)
	$(VENV)/bin/subquad recall

test: $(READY)
	$(VENV)/bin/python -m pytest -n 2

# The stamp is written last, so the next run begins an interrupted installation anew.
$(READY): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[bench,hf,ray,dev]'
	touch $(READY)

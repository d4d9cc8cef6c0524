# Each target makes its own .venv when there is none. PYTHON chooses the interpreter (3.11 or later).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-all lint bench clean

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# The main job on the embedded world: train a reward model from scratch, evaluate it, draw the figures.
quickstart: .venv/installed
	$(BIN)/python -m experiments.train_reward --config=configs/quickstart.py --workdir=runs/quickstart

test: .venv/installed
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist worksteal -m 'not slow'

test-all: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .

# Peak host memory of importing a sharded checkpoint, and other checks that take minutes.
bench: .venv/installed
	$(BIN)/python -m pytest -m slow tests/backbones

clean:
	rm -rf .venv runs build dist *.egg-info

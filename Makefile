# Everything runs in one .venv made here; nothing else needs to be installed by hand.
PY := .venv/bin/python
PYTHON ?= python3

.PHONY: setup demo test test-all check bench smoke docs clean browser

setup: .venv/.done

.venv/.done: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "clipvet needs Python >= 3.11; set PYTHON=python3.x"'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@

demo: setup
	.venv/bin/clipvet demo --out runs/demo --seed 0

# models of full size share one worker (xdist_group), so memory is enough on small machines
test: setup browser
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

check: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright

smoke: setup
	.venv/bin/clipvet run recipes/*.py recipes/paper/*.py recipes/gpu/*.py --smoke

bench: setup
	$(PY) benchmarks/step.py

docs: setup
	$(PY) docs/generate.py

# the report is tested in a real browser
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || (command -v apt-get >/dev/null && $$(command -v sudo) apt-get update -qq && $$(command -v sudo) apt-get install -y -qq chromium) \
	  || echo "no Chromium: install it, or run pytest -m 'not browser'"

clean:
	rm -rf .venv runs build dist *.egg-info

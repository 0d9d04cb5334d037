# Everything runs in one .venv made here; nothing else needs to be installed by hand.
PY := .venv/bin/python
PYTHON ?= python3

.PHONY: setup demo test test-all check bench smoke docs docs-site clean browser

setup: .venv/.done

.venv/.done: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "clipvet needs Python >= 3.11; set PYTHON=python3.x"'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@

demo: setup
	.venv/bin/clipvet demo --out runs/demo --seed 0

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

# writes the generated pages: methods, results, benchmarks
docs: setup
	$(PY) docs/generate.py

# builds the site into site/, offline; open site/index.html
docs-site: setup .venv/docs/.done
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

# two scripts of the site: one draws diagrams, one searches without a server; a site without them leaves both out
.venv/docs/.done: | setup
	mkdir -p .venv/docs
	cd .venv/docs && npm pack --silent mermaid@11.17.2 iframe-worker@1.0.4 \
	  && tar xzOf mermaid-11.17.2.tgz package/dist/mermaid.min.js >mermaid.min.js \
	  && tar xzOf iframe-worker-1.0.4.tgz package/shim/index.js >iframe-worker.js \
	  && rm *.tgz && touch .done || echo "no npm, or no network: the site will have no diagrams"

# the report is tested in a real browser
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || (command -v apt-get >/dev/null && $$(command -v sudo) apt-get update -qq && $$(command -v sudo) apt-get install -y -qq chromium) \
	  || echo "no Chromium: install it, or run pytest -m 'not browser'"

clean:
	rm -rf .venv runs build dist site *.egg-info

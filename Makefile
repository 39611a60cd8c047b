# make demo   save and open photographs, beside JPEG, WebP and AVIF
# make test   the test suite        make lint   ruff and mypy
# make test-compressai   comparisons with CompressAI, which needs an environment of its own
# make test-oldest   the tests of the plugins with the oldest Pillow, NumPy and imageio
# make bench-throughput  many pictures: worker processes, profile, cold start
# make bench  the benchmark; make bench DIR=folder for other images than Kodak, for which published curves are drawn too
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IMAGES ?=
# An index of torch's CPU builds, where the default one would bring the much larger CUDA build.
TORCH_INDEX ?=
DIR ?= ../shared/data/kodak
REFERENCE = $(if $(filter %kodak %kodak/,$(DIR)),$(wildcard ../shared/data/reference/kodak))
STAMP := $(VENV)/.installed

OLDEST := .venv-oldest
PLUGIN_TESTS := $(addprefix tests/test_,$(addsuffix .py,animation batch_metadata draft golden imageio modes pillow progressive region salvage))

# Comparisons with CompressAI, which needs NumPy below 2: an environment of their own.
BESIDE := .venv-compressai

.PHONY: demo test test-compressai test-oldest lint bench bench-throughput clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py $(IMAGES)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-compressai: $(BESIDE)/.installed
	$(BESIDE)/bin/python -m pytest -o filterwarnings= tests/published $(ARGS)

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -n 2 $(PLUGIN_TESTS) $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/lic bench $(DIR) $(if $(REFERENCE),--reference $(REFERENCE)) $(ARGS)

bench-throughput: $(STAMP)
	$(BIN)/lic bench $(DIR) --profile --cold-start --throughput 200 $(ARGS)

# torch comes first and alone: resolved together with the rest, pip may take the CUDA build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[imageio,bench,train,demo,dev]"
	touch $@

$(BESIDE)/.installed: pyproject.toml tests/published/constraints.txt
	$(PYTHON) -m venv $(BESIDE)
	$(BESIDE)/bin/python -m pip install --quiet --upgrade "pip>=24"
	$(BESIDE)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' tests/published/constraints.txt)"
	$(BESIDE)/bin/python -m pip install --quiet -c tests/published/constraints.txt -e ".[compressai]" bjontegaard hypothesis pytest
	touch $@

# Only the old versions are installed; all else, torch above all, comes from the other environment.
$(OLDEST)/.installed: $(STAMP) constraints-oldest.txt
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --no-deps -r constraints-oldest.txt
	path='import sysconfig; print(sysconfig.get_path("purelib"))' && \
	echo "import site; site.addsitedir('$$($(BIN)/python -c "$$path")')" > "$$($(OLDEST)/bin/python -c "$$path")/others.pth"
	touch $@

clean:
	rm -rf $(VENV) $(BESIDE) $(OLDEST) demo bench-results dist build

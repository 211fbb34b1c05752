# make demo   everything from nothing: environment, sample set, search, prune, retrain, a table and pictures
# make test   lint, format, types of the public modules, and the tests but for the slow ones, in a few minutes
# make test-all  the same with all tests
# make mutants  mutation testing of the core modules, an hour at most (docs/mutants.md); MUTANTS="--help" for more
# make models  train the networks that ship anew, and put them in place: minutes of one core
# make wheels  a source distribution, a pure wheel, and wheels with compiled kernels, in dist; WHEELS="--help" for more
# make docs   the documentation site, in build/site; warnings are errors
PYTHON ?= python3
VENV ?= .venv
# Test processes side by side.
JOBS ?= 2
STAMP := $(VENV)/.installed
PYTEST := $(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all docs models mutants wheels lint package types format clean

$(STAMP): setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sparsemask needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch
	PIP_CONSTRAINT=constraints.txt $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@# For its tests, alone: the torchvision it asks for does not import beside a torch for CPUs (tests have a stand-in).
	PIP_CONSTRAINT=constraints.txt $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps timm
	touch $@

demo: $(STAMP)
	rm -rf demo
	$(VENV)/bin/sparsemask demo --out demo

lint: $(STAMP) types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# The package as it is installed, of links, for tools that read it without running it.
package:
	rm -rf build/package
	mkdir -p build/package/sparsemask
	cd build/package/sparsemask && ln -s ../../../sparsemask/* . && \
	    ln -s ../../../VOC12 ../../../prune ../../../retrain ../../../search ../../../spaces .

types: $(STAMP) package
	$(VENV)/bin/mypy

test: lint
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: lint
	$(PYTEST) $(PYTEST_ARGS)

$(VENV)/.mutants: $(STAMP)
	PIP_CONSTRAINT=constraints.txt $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[mutants]'
	touch $@

mutants: $(VENV)/.mutants
	OMP_NUM_THREADS=1 nice -n 19 $(VENV)/bin/python tests/mutants/run.py $(MUTANTS)

$(VENV)/.docs: $(STAMP)
	PIP_CONSTRAINT=constraints.txt $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs package
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# Set5, in $SPARSEMASK_DATA, is for the scores alone; the last step's weights are taken.
ALONE := OMP_NUM_THREADS=1 $(VENV)/bin/python
MADE := build/models
PICTURES := --hr_path build/pictures --data_test build/pictures
models: $(STAMP)
	rm -rf build/pictures $(MADE)
	$(ALONE) -m sparsemask.synthetic.photographs build/pictures
	for scale in 2 3 4; do \
	    name=compact-x$$scale; flags="$(PICTURES) --exp_path $(MADE)"; configs=sparsemask/models/x$$scale; \
	    $(ALONE) retrain/super_resolution.py --config $$configs.yaml $$flags --name $$name && \
	    $(ALONE) bench/models.py --ship $(MADE)/$$name/network.safetensors --name $$name && \
	    $(ALONE) retrain/specialize.py --config $$configs-masked.yaml --weights $$name $$flags --name $$name-masked && \
	    $(ALONE) bench/models.py --ship $(MADE)/$$name-masked/network.safetensors --name $$name-masked || exit 1; \
	done
	$(ALONE) search/run.py --search --space smpointseg --sample --channels 12 20 32 64 --max_iter 400 \
	    --eval_interval 400 --exp_path $(MADE) --name rooms-search
	$(ALONE) prune/prune.py --run $(MADE)/rooms-search --out $(MADE)/rooms.npz
	$(ALONE) retrain/train.py --mask_path $(MADE)/rooms.npz --max_iter 300 --eval_interval 300 --exp_path $(MADE) \
	    --name rooms
	$(ALONE) bench/models.py --ship $(MADE)/rooms/network.safetensors --name rooms
	$(ALONE) search/run.py --search --sample --exp_path $(MADE) --name shapes-search
	$(ALONE) prune/prune.py --run $(MADE)/shapes-search --out $(MADE)/shapes.npy
	$(ALONE) retrain/train.py --mask_path $(MADE)/shapes.npy --sample --exp_path $(MADE) --name shapes
	$(ALONE) bench/models.py --ship $(MADE)/shapes/network.safetensors --name shapes

$(VENV)/.wheels: $(STAMP)
	PIP_CONSTRAINT=constraints.txt $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[wheels]'
	touch $@

# Another processor family where its compiler is installed: apt-get install g++-aarch64-linux-gnu
CROSS := $(if $(shell command -v aarch64-linux-gnu-g++),--cross aarch64=aarch64-linux-gnu-g++)
wheels: $(VENV)/.wheels
	rm -rf dist
	$(VENV)/bin/python bench/wheels.py --out dist $(CROSS) $(WHEELS)
	$(VENV)/bin/python -m pytest tests/test_wheel.py -k "not commands"

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache demo

# `make demo` and `make test` need Python 3.10 or newer and nothing else; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := outputs/demo
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-fast lint app clean

# The stamp is remade when the dependencies change.
$(VENV)/installed: setup.cfg pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# Template data, both stages, the prior and eight samples: about ten minutes on two CPU cores.
demo: $(VENV)/installed
	$(BIN)/python dataset_scripts/template.py --image_size 88 --downsampling_factor 8 --output_dir $(DEMO)/data
	$(BIN)/accelerate launch --quiet --num_cpu_threads_per_process 2 train_vqgan.py --config demo \
		--dataset_name $(DEMO)/data --output_dir $(DEMO)/vqgan --resume_from_checkpoint latest
	$(BIN)/accelerate launch --quiet --num_cpu_threads_per_process 2 train_ihdm.py --config demo \
		--dataset_name $(DEMO)/data --vqvae $(DEMO)/vqgan/best --output_dir $(DEMO)/ihdm --resume_from_checkpoint latest
	$(BIN)/python generate.py --pipeline $(DEMO)/ihdm/pipeline --num_images 8 --output_dir $(DEMO)/images \
		--contact_sheet $(DEMO)/samples.png
	cp $(DEMO)/vqgan/reconstructions.png $(DEMO)/reconstructions.png
	@echo "look at $(DEMO)/samples.png and $(DEMO)/reconstructions.png"

test: $(VENV)/installed
	$(BIN)/pytest

# Without the tests that train, start several processes or run whole benchmarks: under a minute on two cores.
test-fast: $(VENV)/installed
	$(BIN)/pytest -m 'not slow'

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A page to sample from, on the shipped checkpoint.
app: $(VENV)/installed
	$(BIN)/python app.py

clean:
	rm -rf $(VENV) outputs

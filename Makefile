# Each target needs Python 3.10 or newer and installs what it uses, no more; see README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := outputs/demo
export TOKENIZERS_PARALLELISM := false

.PHONY: demo samples test test-fast lint app clean

# A stamp for each choice of extras; remade when the dependencies change.
$(VENV)/installed: EXTRAS := [dev]
$(VENV)/installed-app: EXTRAS := [app]
$(VENV)/installed-demo: EXTRAS := [data,train]
$(VENV)/installed $(VENV)/installed-sampling $(VENV)/installed-app $(VENV)/installed-demo: setup.cfg pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.$(EXTRAS)'
	touch $@

# Eight samples of the shipped model: seconds once its few packages are installed.
samples: $(VENV)/installed-sampling
	rm -rf $(DEMO)/shipped
	$(BIN)/python generate.py --pipeline checkpoints/vq-ihdm-oasis-fine --num_images 8 --output_dir $(DEMO)/shipped \
		--contact_sheet $(DEMO)/shipped.png
	@echo "look at $(DEMO)/shipped.png: eight samples of the shipped model; now see it train with 'make demo'"

# First these, then template data, both stages, the prior and eight samples: six to ten minutes on two CPU cores.
demo: samples $(VENV)/installed-demo
	$(BIN)/python dataset_scripts/template.py --image_size 88 --downsampling_factor 8 --output_dir $(DEMO)/data
	$(BIN)/accelerate launch --quiet --num_cpu_threads_per_process 2 train_vqgan.py --config demo \
		--dataset_name $(DEMO)/data --output_dir $(DEMO)/vqgan --resume_from_checkpoint latest
	$(BIN)/accelerate launch --quiet --num_cpu_threads_per_process 2 train_ihdm.py --config demo \
		--dataset_name $(DEMO)/data --vqvae $(DEMO)/vqgan/last --output_dir $(DEMO)/ihdm --resume_from_checkpoint latest
	$(BIN)/python generate.py --pipeline $(DEMO)/ihdm/pipeline --num_images 8 --output_dir $(DEMO)/images \
		--contact_sheet $(DEMO)/samples.png
	cp $(DEMO)/vqgan/reconstructions.png $(DEMO)/reconstructions.png
	@echo "look at $(DEMO)/samples.png and $(DEMO)/reconstructions.png"

# One process a core; the tests of a file share what they have trained. A test that hangs ends the run: where workers are
# started again, xdist runs it again on each of them, twenty minutes a time.
test: $(VENV)/installed
	$(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0

# Without the tests that train for long, start processes or a browser, or run whole benchmarks.
test-fast: $(VENV)/installed
	$(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0 -m 'not slow'

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A page to sample from, on the shipped checkpoint.
app: $(VENV)/installed-app
	$(BIN)/python app.py

clean:
	rm -rf $(VENV) outputs

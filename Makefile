# Every target first makes the virtual environment it needs in .venv, in this folder; nothing else on
# the machine changes, and no target needs root. `make` alone lists the targets.

PYTHON   ?=
PIP_ARGS ?=
CAMPAIGN  = examples/dipole_gap.toml
OUT       = runs/$(notdir $(basename $(CAMPAIGN)))
DATA      = qm9
PRESET    = small
WORKERS   = 2
PAIRS     = 20
MASK_PAIRS = 60

BIN   := .venv/bin
READY := .venv/.ready
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.PHONY: help venv campaign test test-all bench bench-core bench-graphgen bench-protein bench-shapes train-molgen train-graphgen docs lint

help:
	@echo 'make campaign      generate molecules with a wanted dipole and gap, check them with xTB and DFT,'
	@echo '                   write a report (continues where it stopped); CAMPAIGN=FILE.toml OUT=FOLDER'
	@echo 'make test          the quick tests'
	@echo 'make test-all      all tests, the slow ones included; DRIFTWORKS_DATA=FOLDER for those that need data'
	@echo 'make bench         speed of sampling and training on this machine'
	@echo 'make bench-core    the core beside other libraries: cost of a step, quality by evaluations; two figures'
	@echo 'make bench-graphgen  the shipped graph models against their data; DATA=FOLDER with graphs.npz MODEL=NAME'
	@echo 'make bench-protein  teacher, students and natives side by side; DATA=folder with protein_backbones.npz MODEL=NAME N=200 chains STEPS=16 calls of a student'
	@echo 'make bench-shapes  matching against ground truth, masks, costs; three figures; DATA=folder with shapes_faust.npz MODEL=NAME PAIRS=20 MASK_PAIRS=60'
	@echo 'make train-molgen  train the molecule model (resumable); DATA=qm9|FILE PRESET=small OUT=FOLDER'
	@echo 'make train-graphgen  train a graph model (resumable); DATA=two_communities|FILE PRESET=small OUT=FOLDER'
	@echo 'make docs          the pages of docs/core, from the docstrings'
	@echo 'make lint          ruff and mypy'
	@echo ''
	@echo 'PYTHON=python3.12  the Python (3.11 or newer) that makes .venv; default: the first one found'
	@echo 'PIP_ARGS=...       more arguments for pip, for instance an index with CPU-only builds of torch'

venv: $(READY)

campaign: $(READY)
	@echo '== campaign $(CAMPAIGN) -> $(OUT) (stop it and run it again: it continues)'
	@$(BIN)/driftworks campaign run '$(CAMPAIGN)' --out '$(OUT)'

test: $(READY)
	@echo '== quick tests'
	@$(PYTEST)

test-all: $(READY)
	@echo '== all tests'
	@$(PYTEST) -m ''

bench: $(READY)
	@echo '== benchmarks'
	@for script in $(filter-out benchmarks/store.py benchmarks/graphgen_%.py benchmarks/protein_%.py benchmarks/shapes_%.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

bench-core: $(READY)
	@echo '== what a step of the sampling loop costs -> docs/core/overhead.png'
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/core_overhead.py --figure docs/core/overhead.png
	@echo '== how good samples are for their evaluations -> docs/core/quality.png'
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/core_quality.py --figure docs/core/quality.png

bench-graphgen: DATA = data
bench-graphgen: $(READY)
	@echo '== graph models against their data ($(DATA))'
	@$(BIN)/python benchmarks/graphgen_table.py --data '$(DATA)' $(if $(MODEL),--model $(MODEL))

bench-protein: DATA = data
bench-protein: N = 200
bench-protein: STEPS = 16
bench-protein: $(READY)
	@echo '== protein models beside natives ($(DATA))'
	@$(BIN)/python benchmarks/protein_table.py --data '$(DATA)' $(if $(MODEL),--model $(MODEL)) --n $(N) --steps $(STEPS) --cache runs/bench-protein.jsonl
	@echo '== quality against network calls -> docs/protein_steps.png (stop it and run it again: it continues)'
	@$(BIN)/python benchmarks/protein_steps.py --data '$(DATA)' $(if $(MODEL),--model $(MODEL)) --n $(N) --cache runs/bench-protein.jsonl --out docs/protein_steps.png
	@echo '== chains around motifs of natives'
	@$(BIN)/python benchmarks/protein_motifs.py --data '$(DATA)'
	@echo '== does the class come that was asked for'
	@$(BIN)/python benchmarks/protein_labels.py

bench-shapes: DATA =
bench-shapes: $(READY)
	@echo '== matching of shapes$(if $(DATA), ($(DATA))), $(PAIRS) pairs a set -> docs/shapes/errors.png (stop it and run it again: it continues)'
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/shapes_table.py $(if $(DATA),--data '$(DATA)') $(if $(MODEL),--model '$(MODEL)') --pairs $(PAIRS) --mask-pairs $(MASK_PAIRS) --cache runs/bench-shapes/table.jsonl --picture
	@echo '== what matching costs, and priors against noise -> docs/shapes/cost.png, docs/shapes/noise.png'
	@$(BIN)/python benchmarks/shapes_cost.py $(if $(MODEL),--model '$(MODEL)')

train-molgen: OUT = runs/train-molgen-$(PRESET)
train-molgen: $(READY)
	@echo '== training the $(PRESET) molecule model on $(DATA) -> $(OUT) (stop it and run it again: it continues)'
	@$(BIN)/driftworks train molgen --data '$(DATA)' --preset '$(PRESET)' --out '$(OUT)' --resume

train-graphgen: OUT = runs/train-graphgen-$(PRESET)
train-graphgen: DATA = two_communities
train-graphgen: $(READY)
	@echo '== training the $(PRESET) graph model on $(DATA) -> $(OUT) (stop it and run it again: it continues)'
	@$(BIN)/driftworks train graphgen --data '$(DATA)' --preset '$(PRESET)' --out '$(OUT)' --resume

docs: $(READY)
	@$(BIN)/python docs/build.py

lint: $(READY)
	@echo '== ruff'
	@$(BIN)/ruff check .
	@echo '== mypy'
	@$(BIN)/mypy

# The stamp holds the folder it was made in: a moved or copied checkout installs itself again, because
# an editable install remembers its path.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif

$(READY): pyproject.toml constraints.txt
	@set -e; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  found=; \
	  for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'driftworks needs Python 3.11 or newer: "$(or $(PYTHON),python3)" is missing or older; name one with: make PYTHON=/path/to/python3.11' >&2; exit 1; \
	  fi; \
	  echo "== making .venv with $$found ($$("$$found" --version 2>&1))"; \
	  "$$found" -m venv --clear .venv || { \
	    echo 'driftworks: could not make .venv; on Debian and Ubuntu the package python3-venv is needed' >&2; exit 1; }; \
	fi; \
	echo '== installing driftworks and its dependencies into .venv (once; minutes on a first run)'; \
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[all,test]'; \
	printf '%s' '$(CURDIR)' > $(READY)

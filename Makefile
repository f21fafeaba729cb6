# Two commands for users, the rest for those who change something. `make help` lists them.
PYTHON ?= python3
CORES ?= all
CONFIG ?= config/embedded.yaml
VENV := .venv
READY := $(VENV)/.ready
TRITON := $(VENV)/triton

.DEFAULT_GOAL := help
.PHONY: run test test-cluster check paper clean help lock schema

run: $(READY)    ## everything: install, quantize, evaluate, tables, figures (CONFIG=config/smoke.yaml for another run)
	@$(VENV)/bin/r2q run $(CONFIG) --cores $(CORES)

test: $(READY) $(TRITON)  ## install, then all tests, the smoke run of the whole workflow included
	@$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --no-loadscope-reorder

test-cluster: $(READY)  ## as root: profiles/slurm on a SLURM of one node (apt-get install slurmctld slurmd slurm-client munge)
	$(VENV)/bin/python -m pip install --quiet --no-build-isolation --editable '.[slurm]'
	$(VENV)/bin/python -m pytest -m cluster tests/cluster

check: $(READY)  ## formatting, lints, types, and that generated files are what their sources say
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/snakefmt --check Snakefile workflow  # it calls shfmt
	$(VENV)/bin/python -m r2q schema --check
	$(VENV)/bin/mypy
	$(VENV)/bin/snakemake --lint

paper: $(READY)  ## the full-size models of config/paper.yaml (GPUs and the Hugging Face hub are needed)
	@$(VENV)/bin/r2q run config/paper.yaml --cores $(CORES)

clean:           ## remove what runs made (reference numbers and figures stay), not the environment
	find results figures -mindepth 1 -maxdepth 1 -not -name reference -not -name published -exec rm -rf {} + 2>/dev/null || true
	rm -rf .snakemake

lock:            ## requirements.lock from pyproject.toml; keeps the versions that it has where they still fit (needs uv)
	printf 'sympy\nnetworkx\nhatchling\n' | uv pip compile pyproject.toml - --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --no-emit-package torch \
		--override .ci/without_torch.txt --output-file requirements.lock

schema: $(READY) ## the JSON schema of configs and the table of keys in config/README.md, from r2q/config
	$(VENV)/bin/python -m r2q.config.schema

help:            ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(TRITON): | $(READY)  # its interpreter runs the GPU's kernels on a CPU; nothing but that test sees this folder
	-@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --target $@ triton==3.6.0

$(READY): requirements.lock pyproject.toml bootstrap.py
	@$(PYTHON) bootstrap.py
	@touch $@

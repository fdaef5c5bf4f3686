# Every target sets up what it needs in .venv; VENV=path uses another virtual environment.
VENV ?= .venv
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PYTEST := pytest --numprocesses auto --maxprocesses 8 --dist worksteal
TORCHREC := torchrec==1.9.2
# TorchRec's metadata asks for the CUDA build of FBGEMM, which would overwrite the CPU build: without its dependencies.
TORCHREC_NEEDS := tensordict torchmetrics==1.0.3 pyre-extensions tqdm
# Small disks can be mounted in a namespace of one's own, where the kernel lets one have it.
OWN_MOUNTS := $(shell unshare --map-root-user --mount true 2> /dev/null && echo unshare --map-root-user --mount)

.PHONY: demo test lint fuzz fuzz-coverage kills determinism coverage mutants bench bench-cost bench-placement bench-torchrec bench-exact \
	bench-review schemas dist lowest latest audit lock clean

demo: $(VENV)/.ready  ## compile DLRM-DCNv2, then train a small one with TorchRec on two CPU ranks
	$(BIN)/shardc compile examples/dlrm-dcnv2.toml
	$(BIN)/shardc compile examples/dlrm-small.toml --quiet
	OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore $(BIN)/torchrun --nproc-per-node 2 examples/train_dlrm.py --plan examples/dlrm-small.plan.json

test: $(VENV)/.ready lint  ## lint, types, tests, and the examples' committed plans
	$(BIN)/$(PYTEST)
	$(BIN)/shardc check examples/*.toml

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/.ready  ## 100,000 specs, 20,000 plans and more; interrupted, it goes on (FUZZ="--seed 1" for others)
	$(BIN)/python tests/fuzz/fuzz.py $(FUZZ)

fuzz-coverage: $(VENV)/.ready  ## guided by coverage, ten minutes a reader; atheris has wheels for Linux and Python 3.11 to 3.13
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python tests/fuzz/fuzz_coverage.py spec
	$(BIN)/python tests/fuzz/fuzz_coverage.py plan

kills: $(VENV)/.ready  ## SIGKILL at 500 random points, and 200 full disks: nothing broken, nothing lost
	OMP_NUM_THREADS=1 $(OWN_MOUNTS) $(BIN)/python tests/crash/kills.py $(KILLS)

determinism: $(VENV)/.ready  ## 1,000 compiles in processes that differ in all that should not matter: the same bytes
	PYTHONPATH=tests:tests/fuzz $(BIN)/python tests/determinism.py $(DETERMINISM)

coverage: $(VENV)/.ready  ## branches of passes/, placers/ and check/ that the tests take: 95 % or more
	$(BIN)/pip install --quiet --disable-pip-version-check 'coverage>=7.10'
	$(BIN)/coverage erase
	$(BIN)/coverage run -m $(PYTEST)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

mutants: $(VENV)/.ready  ## changes to verify.py and memory.py that tests notice: 90 % or more; six minutes
	$(BIN)/pip install --quiet --disable-pip-version-check 'mutmut>=3.8,<4'
	rm -rf mutants
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

bench: $(VENV)/.ready  ## figures of the README, measured on this machine
	$(BIN)/python tests/benchmarks/bench_cli.py

bench-cost: $(VENV)/.ready  ## how exact the shipped CPU profile is, beside other models
	$(BIN)/python tests/benchmarks/bench_cost.py

bench-placement: $(VENV)/.ready  ## how good placements are and how long they take, at all sizes
	$(BIN)/python tests/benchmarks/bench_placement.py

bench-torchrec: $(VENV)/.ready  ## planning and training beside TorchRec's planner
	$(BIN)/python tests/benchmarks/bench_torchrec.py --large

bench-exact: $(VENV)/.ready  ## plans beside optima by HiGHS, and tight packings
	$(BIN)/python tests/benchmarks/bench_exact.py

bench-review: $(VENV)/.ready  ## how long checks of committed plans take
	$(BIN)/python tests/benchmarks/bench_review.py

schemas: $(VENV)/.ready
	$(BIN)/shardc schema spec > schemas/spec.schema.json
	$(BIN)/shardc schema plan > schemas/plan.schema.json
	$(BIN)/shardc schema check > schemas/check.schema.json

dist: $(VENV)/.ready  ## source and wheel, the same bytes every time; installed where nothing is, and tried
	rm -rf dist build
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m build --outdir build/again
	cmp dist/*.whl build/again/*.whl
	cmp dist/*.tar.gz build/again/*.tar.gz
	$(PYTHON) -m venv build/empty
	build/empty/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	cd build && empty/bin/shardc compile ../examples/dlrm-dcnv2.toml --quiet -o dlrm-dcnv2.plan.json
	cmp build/dlrm-dcnv2.plan.json examples/dlrm-dcnv2.plan.json

lowest: build/lowest.txt  ## tests with the oldest releases that pyproject.toml allows
	$(MAKE) .venv-lowest/.ready VENV=.venv-lowest CONSTRAINTS=build/lowest.txt
	.venv-lowest/bin/$(PYTEST)

latest:  ## tests with the newest releases that pyproject.toml allows
	$(MAKE) .venv-latest/.ready VENV=.venv-latest CONSTRAINTS=/dev/null
	.venv-latest/bin/$(PYTEST)

audit:  ## known vulnerabilities of what constraints.txt names, by the database of PyPI
	test -x build/audit/bin/pip-audit || $(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

lock:  ## the newest releases that pyproject.toml allows, into constraints.txt
	rm -rf .venv-latest
	$(MAKE) .venv-latest/.ready VENV=.venv-latest CONSTRAINTS=/dev/null
	.venv-latest/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

build/lowest.txt: pyproject.toml
	mkdir -p build
	grep -oE '^ *"[a-z-]+>=[0-9.]+' $< | sed -E 's/[ "]//g; s/>=/==/' > $@

$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) --editable '.[cpu,dev]' $(TORCHREC_NEEDS)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(TORCHREC)
	touch $@

clean:
	rm -rf .venv* build dist mutants *.egg-info .mypy_cache .pytest_cache .ruff_cache

# make quickstart | test | test-slow | check | docs | requirements; everything runs in .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
DEV := $(VENV)/.dev

.PHONY: help quickstart tune-minatar reproduce-minatar test test-slow test-next check \
  format docs requirements clean

help:
	@echo 'make quickstart         install and run the main job (runs/quickstart/report)'
	@echo 'make reproduce-minatar  the study on MinAtar, hours (runs/minatar/report)'
	@echo 'make tune-minatar       what its coefficients were chosen by'
	@echo 'make test               install and run the test suite'
	@echo 'make test-slow          run the tests that take minutes'
	@echo 'make test-next          the same on TensorFlow 2.21 and Python 3.12; may fail'
	@echo 'make check              ruff, mypy and import-linter'
	@echo 'make format             let ruff format the code'
	@echo 'make docs               build the documentation as a site (build/site)'
	@echo 'make requirements       compile the pinned requirements again'
	@echo 'make clean              remove the environment; runs/ stays'

quickstart: $(BASE)
	@PATH="$(abspath $(BIN)):$$PATH" bash run_scripts/quickstart.sh

tune-minatar: $(DEV)
	@PATH="$(abspath $(BIN)):$$PATH" bash run_scripts/minatar_study.sh \
	  sweeps/minatar_tuning

reproduce-minatar: $(DEV)
	@PATH="$(abspath $(BIN)):$$PATH" bash run_scripts/minatar_study.sh \
	  sweeps/minatar studies/figure1 sweeps/minatar_pilot \
	  sweeps/minatar_drift sweeps/minatar_norm sweeps/minatar_wide
	$(BIN)/python run_scripts/regimes.py results/minatar_pilot
	$(BIN)/python run_scripts/regimes.py results/minatar_wide
	$(BIN)/python run_scripts/choices.py results/minatar_pilot
	$(BIN)/python run_scripts/choices.py results/minatar
	$(BIN)/python run_scripts/effects.py \
	  --output=results/minatar/tables/effects.csv \
	  --pairs rem_dr3:rem cql_dr3:cql -- results/minatar
	$(BIN)/python run_scripts/effects.py \
	  --output=results/minatar_norm/tables/effects.csv \
	  --pairs cql_norm:cql_dr3 cql_norm:cql cql_dr3:cql -- \
	  results/minatar_norm results/minatar
	wide=cosine_change,growth_factor,average,final,lost; \
	$(BIN)/python run_scripts/effects.py \
	  --output=results/minatar_wide/tables/effects.csv --pairs \
	  dqn_wide_dr3:dqn_wide:$$wide dqn_wide_norm:dqn_wide:$$wide \
	  dqn_wide_dr3:dqn_wide_norm:cosine_change -- results/minatar_wide
	$(BIN)/python -m batch_rl_dr3.report --preset=dr3_minatar \
	  --runs=results/minatar --output_dir=runs/minatar/report
	$(BIN)/python -m batch_rl_dr3.report --preset=dr3_minatar_figure1 \
	  --runs='results/minatar_figure1/*/first10pct/*/*' \
	  --output_dir=runs/minatar/report_figure1

test: $(DEV)
	$(BIN)/python -m pytest

test-slow: $(DEV)
	$(BIN)/python -m pytest -m slow

# What breaks there is written in CONTRIBUTING.md. `-` lets it fail.
test-next: $(VENV)/.uv
	$(BIN)/uv venv --quiet --allow-existing --python 3.12 $(VENV)-next
	$(BIN)/uv pip install --quiet --python $(VENV)-next/bin/python \
	  --override requirements-next.txt -r pyproject.toml --extra dev --extra d4rl
	-BATCH_RL_DR3_NEXT=1 $(VENV)-next/bin/python -m pytest

check: $(DEV)
	$(BIN)/ruff check batch_rl_dr3 benchmarks tests run_scripts
	$(BIN)/ruff format --check batch_rl_dr3 benchmarks tests run_scripts
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)
	$(BIN)/ruff check --fix batch_rl_dr3 benchmarks tests run_scripts
	$(BIN)/ruff format batch_rl_dr3 benchmarks tests run_scripts

$(VENV)/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  2>/dev/null || { echo 'Python 3.11 is needed and $(PYTHON) is not it:' \
	  'install it, or run make PYTHON=/path/to/python3.11'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv
	@touch $@

$(BASE): requirements.txt pyproject.toml $(VENV)/.uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
	  -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	$(BIN)/python -m compileall -q batch_rl_dr3
	@touch $@

$(DEV): requirements-dev.txt $(BASE)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
	  -r requirements-dev.txt
	@touch $@

docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

requirements: $(VENV)/.uv
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --no-emit-index-url \
	  --no-emit-find-links --python-version 3.11 pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --no-emit-index-url \
	  --no-emit-find-links --python-version 3.11 --all-extras pyproject.toml \
	  -c requirements.txt -o requirements-dev.txt

clean:
	rm -rf $(VENV) $(VENV)-next

# What a person types. Each target is one command; the scripts do the work.
.PHONY: setup serve fast check test bench

setup: ## make .venv with everything
	scripts/setup_venv.sh dev

serve: setup ## a fleet with the sample model on this machine
	.venv/bin/aios serve hrm

fast: setup ## tests that need no torch, no Redis and no other process: under a minute
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q --fast tests

check: setup ## format, lint, types, doors
	scripts/check

test: ## everything that must hold
	scripts/test.sh

bench: setup ## the fleet beside transformers.generate, with the sample model
	.venv/bin/python -m scripts.bench.fleet

# Every target does its own set-up in .venv; see infra/setup/bootstrap.sh.
.PHONY: help demo up test check test-slow test-faults test-live setup setup-dev
bin := .venv/bin
workers ?= 3

help:
	@echo "make demo       solve one real ticket with the local model (downloads about 1.1 GB once)"
	@echo "make test       checks and tests, without a model"
	@echo "make check      only the static checks"
	@echo "make test-slow  the whole runs that make test leaves out (minutes)"
	@echo "make test-faults  kills and storms: nodes that die, dispatchers that are killed (minutes)"
	@echo "make test-live  the tests that need the real local model"
	@echo "make up         Prefect server with UI, worker and deployments, until Ctrl-C"

demo: setup
	@$(bin)/darkfactory demo $(ARGS)

up: setup
	@$(bin)/darkfactory up $(ARGS)

check: setup-dev
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/lint-imports

test: check
	$(bin)/pytest -n $(workers) --dist loadfile -m "not live and not faults and not slow" $(ARGS)

test-slow: setup-dev
	$(bin)/pytest -n $(workers) --dist loadfile -m "slow and not live and not faults" $(ARGS)

test-faults: setup-dev
	$(bin)/pytest -m faults $(ARGS)

test-live: setup-dev
	$(bin)/pytest -m live $(ARGS)

setup:
	@infra/setup/bootstrap.sh run

setup-dev:
	@infra/setup/bootstrap.sh dev

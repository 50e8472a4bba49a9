# Every target prepares what it needs through tools/bootstrap.sh; nothing has to be done by hand before.
# ARGS is passed on, for instance: make test ARGS="tests/unit -x"

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help apply example test sim nested coverage check bench soak guest docs lock clean

SPECS ?= specs/
ARGS ?=
SEED ?= 0
SEEDS ?= 1
STEPS ?= 5000
NESTED := -v -p no:cacheprovider -p no:randomly --timeout 3000 --durations 0 --durations-min 1 \
	--deselect tests/contract/test_networks.py::test_one_address_is_made_and_released_a_thousand_times \
	$(addprefix tests/,$(SELECTION))
SELECTION ?= e2e/test_linux_guest.py e2e/test_container_guest.py::test_an_image_of_a_registry_becomes_a_vm_that_serves_a_page \
	e2e/test_guest_packets.py \
	$(addprefix contract/test_,jail.py metadata.py media.py checks.py fields.py networks.py isolation.py driver.py driver_firecracker.py)
GUEST := mikrom_reconcile/guest

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

apply: ## the microVMs of specs/ on this machine, then a table of them
	@tools/bootstrap.sh apply bash -c 'mikrom apply $(SPECS) --yes $(ARGS); code=$$?; mikrom get vms; exit $$code'

example: ## three real Linux VMs with drives, a network and a page to open, from examples/web; as root
	@tools/bootstrap.sh example examples/web/run $(ARGS)

# Most tests wait for processes more than they compute: five at a time keep two cores busy.
test: ## every test but the soak tests
	@tools/bootstrap.sh test pytest -n 5 --dist worksteal -m 'not soak' $(ARGS)

sim: ## fleets in virtual time, with faults: SEEDS=1 from SEED=0 on, each of STEPS=5000; says how to repeat what fails
	@tools/bootstrap.sh test python -m tests.simulation --seed $(SEED) --seeds $(SEEDS) --steps $(STEPS) $(ARGS)

nested: ## the contract of drivers and real Linux guests under Firecracker, on an emulated host with KVM; as root; takes an hour
	@tools/bootstrap.sh test python -m tests.nested_host pytest $(NESTED) $(ARGS)

coverage: ## how much of the package the tests run, in child processes too; takes twice as long as they do
	@tools/bootstrap.sh test tools/coverage.sh $(ARGS)

soak: ## the tests that take minutes
	@tools/bootstrap.sh test pytest -m soak --timeout 3600 $(ARGS)

check: ## format, lint, types, layers, schemas, scripts, coverage of the core, and that the demo guest is what its sources build
	@tools/bootstrap.sh check tools/check.sh

bench: ## the measurements of the README
	@tools/bootstrap.sh test python -m benchmarks $(ARGS)

guest: ## the demo guest, built anew from its sources
	@tools/bootstrap.sh check $(MAKE) --no-print-directory -C $(GUEST)

docs: ## docs/reference/specs.md, from schemas/
	@tools/bootstrap.sh check python tools/spec_reference.py

lock: ## requirements/*.txt, resolved anew: the newest releases that pyproject.toml allows, with hashes
	@tools/bootstrap.sh check tools/lock.sh

clean: ## removes the environment and the caches; microVMs, records and binaries stay
	@rm -rf .venv .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis build dist .coverage .coverage.* htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

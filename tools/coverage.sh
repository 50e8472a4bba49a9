#!/bin/bash
# `make coverage`: every test but the soak tests, and which lines and branches of the package they ran, in commands,
# workers and services too. Under its burden a test of times may fail: what fails is told, and counts in `make test`.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

scratch=$(mktemp -d) || exit
trap 'rm -rf "$scratch"' EXIT
export COVERAGE_FILE=$scratch/all
coverage run -m pytest -q -n 3 --dist worksteal -p no:cacheprovider -m 'not soak' "$@"
coverage combine -q "$scratch" && coverage report --fail-under=90

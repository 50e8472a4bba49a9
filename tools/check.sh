#!/bin/bash
# What has to hold besides the tests: `make check` calls it. It goes on after a failure, so that one run names them all.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

failed=()

check() { # NAME COMMAND...: silent when it holds
    local name=$1 output
    shift
    if output=$("$@" 2>&1); then
        printf '  ok      %s\n' "$name"
    else
        failed+=("$name")
        printf '  FAILED  %s: %s\n%s\n' "$name" "$*" "$output"
    fi
}

check format ruff format --check .
check lint ruff check .
check types mypy
check layers lint-imports --no-logo
check scripts shellcheck tools/*.sh .ci/run

if ((${#failed[@]})); then
    echo "failed: ${failed[*]}"
    exit 1
fi

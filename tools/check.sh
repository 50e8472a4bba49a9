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

specs() { # by a validator that is not ours; it wants each document in a file of its own
    local scratch
    scratch=$(mktemp -d) || return
    awk -v folder="$scratch/" '
        FNR == 1 || /^---/ { name = FILENAME; gsub("/", ".", name); document = folder name "." ++count ".yml" }
        { print > document }' specs/*.yml examples/web/specs/web.yml &&
        check-jsonschema --schemafile schemas/mikrom.schema.json "$scratch"/*.yml
    local code=$?
    rm -rf "$scratch"
    return $code
}

units() { # silent, or systemd has found something; and as closed as they were when they were tried out
    local scratch unit code=0
    scratch=$(mktemp -d) || return
    for unit in deploy/systemd/*.service; do
        sed 's|/opt/mikrom/bin/mikrom|/bin/true|' "$unit" >"$scratch/${unit##*/}"
    done
    [[ -z $(systemd-analyze verify --man=no "$scratch"/*.service 2>&1 | tee /dev/stderr) ]] || code=1
    # exposure in tenths; the host worker's children are microVMs, and what closes it would close them
    for unit in "$scratch"/*.service; do
        systemd-analyze security --offline=true --no-pager \
            --threshold="$([[ $unit == *-host.service ]] && echo 80 || echo 20)" "$unit" || code=1
    done
    rm -rf "$scratch"
    return $code
}

core_covered() { # every branch of the core, by the tests that need nothing but it; those of malice measure time instead
    local scratch
    scratch=$(mktemp -d) || return
    export COVERAGE_FILE=$scratch/core
    coverage run -m pytest -q -p no:cacheprovider -k 'not malice' tests/unit/core tests/cases &&
        coverage combine -q "$scratch" && coverage report --include='mikrom_reconcile/core/*' --fail-under=100
    local code=$?
    rm -rf "$scratch"
    return $code
}

check format ruff format --check .
check lint ruff check .
check types mypy
check layers lint-imports --no-logo
check schemas check-jsonschema --check-metaschema schemas/*.schema.json
check specs specs
check compose check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
if command -v systemd-analyze >/dev/null; then
    check units units
else
    echo '  SKIPPED units: systemd-analyze is not installed here'
fi
check guest make --silent -C mikrom_reconcile/guest check
check core-covered core_covered
check install tools/install_check.sh
check scripts shellcheck tools/*.sh mikrom_reconcile/guest/check.sh .ci/run examples/web/{run,image/serve,image/www/cgi-bin/index.cgi}

if ((${#failed[@]})); then
    echo "failed: ${failed[*]}"
    exit 1
fi

#!/bin/bash
# Resolves requirements/*.txt anew from pyproject.toml: `make lock` calls it.
# One file serves every supported Python on Linux, which pip-compile cannot do: it resolves for the Python it runs on.
# No index address gets into the files: who installs decides where from.
# Each file is the whole resolution, extras included, so that whoever installs it (with --no-deps) resolves nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

compile() {
    uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-strip-extras \
        --custom-compile-command 'make lock' "$@"
}

# hatchling is what makes the editable install of the checkout.
compile pyproject.toml - --output-file requirements/run.txt <<<'hatchling'
compile pyproject.toml --all-extras --constraints requirements/run.txt --output-file requirements/dev.txt
echo "requirements/run.txt and requirements/dev.txt are resolved anew; look at git diff, then run make check test"

#!/bin/bash
# That tools/bootstrap.sh makes an environment on the oldest supported system, whatever is released after the lock
# was made: with the oldest pip that one ships, and a newer release of every pinned package in sight. `make check` calls it.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/checkout" "$scratch/newer"
git ls-files -z | xargs -0 cp --parents -t "$scratch/checkout"
cd "$scratch/checkout"

python - "$scratch/newer" <<'PYTHON'
import pathlib, re, sys, zipfile

for name in set(re.findall(r"^([\w.-]+)(?:\[.*\])?==", pathlib.Path("requirements/dev.txt").read_text(), re.M)):
    stem = f"{re.sub('[-_.]+', '_', name)}-9999"
    with zipfile.ZipFile(f"{sys.argv[1]}/{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 9999\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
PYTHON

python -m venv .venv
export PIP_QUIET=2 PIP_NO_COMPILE=1 MIKROM_DRIVER=simulated
.venv/bin/python -m pip install --no-deps --require-hashes --requirement requirements/oldest-pip.txt
PIP_FIND_LINKS="${PIP_FIND_LINKS:-} $scratch/newer" tools/bootstrap.sh check .venv/bin/python - <<'PYTHON'
# What each distribution needs is there, what its extras pull in included.
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

pinned = [Requirement(line.split("\\")[0]) for line in Path("requirements/dev.txt").read_text().splitlines() if "==" in line]
for pin in pinned:
    if pin.marker is None or pin.marker.evaluate():
        assert distribution(pin.name).version in pin.specifier, pin
        for needed in map(Requirement, distribution(pin.name).requires or ()):
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *pin.extras)):
                assert distribution(needed.name).version in needed.specifier, f"{pin.name} wants {needed}"
PYTHON

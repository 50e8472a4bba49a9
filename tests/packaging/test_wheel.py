"""Builds the wheel, installs it where no checkout is near, and uses it there."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import mikrom_reconcile

CHECKOUT = Path(__file__).parents[2]
SMALLEST_SPEC = """\
apiVersion: mikrom/v1
kind: Fleet
metadata: {name: web}
spec:
  replicas: 3
  template: {image: hello}
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=CHECKOUT)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel; what it depends on is borrowed from this one."""
    venv = tmp_path_factory.mktemp("installed")
    made = run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv)
    assert made.returncode == 0, made.stderr
    # A .pth file comes after the environment's own packages, and the .pth files behind it are not read: the
    # editable install of the checkout is out of reach. pip itself is borrowed too.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (venv / "lib" / version / "site-packages/borrowed.pth").write_text(sysconfig.get_path("purelib"))
    pip = (venv / "bin/python", "-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed")
    put = run(*pip, wheel, cwd=venv)
    assert put.returncode == 0, put.stderr
    return venv / "bin"


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.partition("/")[0] for name in names}
    assert roots == {"mikrom_reconcile", f"mikrom_reconcile-{mikrom_reconcile.__version__}.dist-info"}
    assert not [name for name in names if name.endswith("ruff.toml")]


@pytest.mark.parametrize(
    "data",
    [
        "schemas/*.json",
        "mikrom_reconcile/guest/*.elf",
        "mikrom_reconcile/output/*.html",
        "mikrom_reconcile/output/*.css",
    ],
)
def test_the_wheel_holds_the_same_schemas_guest_and_pages_as_the_checkout(wheel: Path, data: str) -> None:
    archive = zipfile.ZipFile(wheel)
    originals = sorted(CHECKOUT.glob(data))
    assert originals
    for original in originals:
        inside = f"mikrom_reconcile/{original.parent.name}/{original.name}"
        assert archive.read(inside) == original.read_bytes()


def test_an_installed_wheel_finds_its_own_data_files_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.resources import files; package = files('mikrom_reconcile'); print(package);"
        "print(package.joinpath('guest/hello.elf').read_bytes()[:4]);"
        "print(any(entry.name.endswith('.json') for entry in package.joinpath('schemas').iterdir()))"
    )
    told = run(installed / "python", "-c", code, cwd=tmp_path)
    package, elf_magic, has_schemas = told.stdout.splitlines()
    assert package.startswith(str(installed.parent))
    assert elf_magic == r"b'\x7fELF'"
    assert has_schemas == "True"


def test_the_installed_command_tells_its_version(installed: Path, tmp_path: Path) -> None:
    told = run(installed / "mikrom", "version", cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    assert mikrom_reconcile.__version__ in told.stdout


def test_the_installed_command_accepts_a_good_spec_by_its_own_schemas(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(SMALLEST_SPEC)
    told = run(installed / "mikrom", "validate", "web.yaml", cwd=tmp_path)
    assert told.returncode == 0, told.stderr


def test_the_installed_command_refuses_a_bad_spec_by_its_own_schemas(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(SMALLEST_SPEC.replace("replicas: 3", "replicas: many"))
    told = run(installed / "mikrom", "validate", "web.yaml", cwd=tmp_path)
    assert told.returncode == 1
    assert "web.yaml:5:" in told.stdout + told.stderr
    assert "Traceback" not in told.stderr

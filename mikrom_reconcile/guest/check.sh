#!/bin/bash
# Is hello.elf what its sources build? `make check` calls it, with the compiler and the linker in CC and LD.
set -euo pipefail
cd "$(dirname "$0")"
export LC_ALL=C

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

of() { sed -n "s/^$2: //p" "$1/hello.elf.build"; }
die() { echo "$1" >&2 && exit 1; }

[[ $(sha256sum <hello.elf) == "$(of . elf)  -" ]] ||
    die "hello.elf is not the file that hello.elf.build describes: run make here, and commit both"

make --silent --no-print-directory OUT="$fresh" CC="$CC" LD="$LD"

[[ $(of "$fresh" sources) == "$(of . sources)" ]] ||
    die "the sources have changed since hello.elf was built: run make here, and commit it with hello.elf.build"

if cmp --silent hello.elf "$fresh/hello.elf"; then
    echo "hello.elf: the same bytes, built anew by $(of "$fresh" compiler), $(of "$fresh" linker)"
    exit
fi
for tool in compiler linker; do
    if [[ $(of "$fresh" $tool) != "$(of . $tool)" ]]; then
        echo "hello.elf: other bytes than here, from another $tool: $(of . $tool); here: $(of "$fresh" $tool)"
        other_tools=yes
    fi
done
[[ ${other_tools:-} ]] || die "hello.elf: other bytes from the same sources, compiler and linker: it is not reproducible"

echo "hello.elf: so the bytes prove nothing on this machine. The guest built here is tested instead:"
cd ../..
PATH="$PWD/.venv/bin:$PATH" MIKROM_GUEST_ELF="$fresh/hello.elf" pytest --quiet tests/e2e/test_demo_guest.py

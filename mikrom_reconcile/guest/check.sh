#!/bin/bash
# Are hello.elf and init.elf what their sources build? `make check` calls it, with the compiler and the linker in CC, LD.
set -euo pipefail
cd "$(dirname "$0")"
export LC_ALL=C

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

of() { sed -n "s/^$2: //p" "$1.elf.build"; }
die() { echo "$1" >&2 && exit 1; }

make --silent --no-print-directory OUT="$fresh" CC="$CC" LD="$LD"

for name in hello init; do
    [[ $(sha256sum <$name.elf) == "$(of $name elf)  -" ]] ||
        die "$name.elf is not the file that $name.elf.build describes: run make here, and commit both"
    [[ $(of "$fresh/$name" sources) == "$(of $name sources)" ]] ||
        die "the sources have changed since $name.elf was built: run make here, and commit it with $name.elf.build"

    if cmp --silent $name.elf "$fresh/$name.elf"; then
        echo "$name.elf: the same bytes, built anew by $(of "$fresh/$name" compiler), $(of "$fresh/$name" linker)"
        continue
    fi
    for tool in compiler linker; do
        if [[ $(of "$fresh/$name" $tool) != "$(of $name $tool)" ]]; then
            echo "$name.elf: other bytes than here, from another $tool: $(of $name $tool); here: $(of "$fresh/$name" $tool)"
            other_tools=yes
        fi
    done
    [[ ${other_tools:-} ]] || die "$name.elf: other bytes from the same sources, compiler and linker: it is not reproducible"
done
[[ ${other_tools:-} ]] || exit 0

echo "so the bytes prove nothing on this machine. The demo guest built here is tested instead:"
cd ../..
PATH="$PWD/.venv/bin:$PATH" MIKROM_GUEST_ELF="$fresh/hello.elf" pytest --quiet tests/e2e/test_demo_guest.py

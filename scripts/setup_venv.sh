#!/usr/bin/env bash
# Makes .venv with the pinned packages of one extra (all, ui or dev) and this tree, editable. A second run returns at once:
# a stamp holds the hash of the files that list the installed packages, and of those that are compiled.
# usage: scripts/setup_venv.sh [all|ui|dev]     ui is all with the web app, dev is that with the tools for tests
set -euo pipefail

extra=${1:-all}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

fail() {
    echo "setup_venv: $1" >&2
    exit 1
}

# Python 3.12 and 3.11 come first: CI runs them, and for them there is a wheel with Redis. Later ones have one with Valkey.
find_python() {
    local name names=(python3.12 python3.11 python3 python3.13 python3.14)
    if [[ -n ${PYTHON:-} ]]; then
        names=("$PYTHON") # one name, which may hold spaces
    fi
    for name in "${names[@]}"; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
    fail "no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3 $0"
}

case $extra in
all) extras=all enough=(all ui dev) ;;
ui) extras=all,ui enough=(ui dev) ;;
dev) extras=dev enough=(dev) ;;
*) fail "expected all, ui or dev, got $extra" ;;
esac
wanted=$(cat "$root"/{pyproject.toml,constraints.txt,setup.py,worker/native/kernels.c} | { sha256sum 2>/dev/null || shasum -a 256; })
stamp=$venv/.aios-stamp-$extra
for name in "${enough[@]}"; do
    file=$venv/.aios-stamp-$name
    if [[ -x $venv/bin/aios && -f $file && $(<"$file") == "$wanted" ]]; then
        exit 0
    fi
done

if [[ ! -x $venv/bin/python ]]; then
    python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        fail "$python has no venv module; on Debian or Ubuntu: sudo apt-get install python3-venv"
    fi
    "$python" -m venv "$venv"
fi
echo "setup_venv: installing into $venv (the first time this takes some minutes)" >&2
cd "$root"
rm -f "$stamp"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
# torch comes first and alone, by exact version: a range may install gigabytes of CUDA packages. AIOS_TORCH_INDEX may
# name another index for it, for instance https://download.pytorch.org/whl/cpu
"${pip[@]}" ${AIOS_TORCH_INDEX:+--index-url "$AIOS_TORCH_INDEX"} -c constraints.txt torch==2.13.0
"${pip[@]}" -c constraints.txt -e ".[$extras]"
echo "$wanted" >"$stamp"

#!/usr/bin/env bash
# Everything that must hold: the rules (scripts/check), then the tests, on all cores, slow ones last.
# usage: scripts/test.sh [pytest arguments]
#   Paths or node ids under tests/ among the arguments replace the whole suite, and run in one process:
#   scripts/test.sh tests/api/test_chat.py::test_x -x
# Ends with pytest's closing line; the exit status is pytest's, or else that of the rules.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export OMP_NUM_THREADS=1 # two spinning thread pools on two cores make tiny models many times slower

# Temporary files lie in memory where there is room: on a disk that others keep busy a Redis that syncs stands still.
memory=""
has_room() {
    local free_kib
    free_kib=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)
    ((${free_kib:-0} > 4 * 1024 * 1024))
}
if [[ -z ${TMPDIR:-} ]] && has_room && memory=$(mktemp -d /dev/shm/aios-tests.XXXXXX); then
    trap 'rm -rf "$memory"' EXIT
    chmod 1777 "$memory" # as of any folder for them: some tests become another user
    printf '#!/bin/sh\n' >"$memory/runs" && chmod +x "$memory/runs"
    ! "$memory/runs" 2>/dev/null || export TMPDIR=$memory
fi

scripts/setup_venv.sh dev
scripts/setup_node.sh
rules=0
scripts/check || rules=$?
[[ $rules == 0 ]] || echo "test.sh: scripts/check failed with status $rules" >&2

units=()
for argument in "$@"; do
    case $argument in
    tests | tests/* | ./tests/* | "$root"/tests/*) units+=("$argument") ;;
    esac
done
spread=()
if ((${#units[@]} == 0)); then
    slow=(tests/scripts tests/chaos tests/e2e)
    mapfile -t units < <(find tests -mindepth 1 -maxdepth 1 \( -type d ! -name '[_.]*' -o -name 'test_*.py' \) |
        grep -vxF "$(printf '%s\n' "${slow[@]}")" | sort)
    units+=("${slow[@]}")
    set -- "$@" "${units[@]}"
    cores=$(getconf _NPROCESSORS_ONLN)
    # Two processes a core, for much of the suite waits for other processes; no more than 8, for each collects all of it.
    # The tests of a file stay together: they share fleets.
    spread=(-n "$((cores < 4 ? 2 * cores : 8))" --dist loadfile --no-loadscope-reorder)
fi
tests=0
.venv/bin/python -m pytest -q "${spread[@]}" "$@" || tests=$?
exit $((tests ? tests : rules))

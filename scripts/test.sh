#!/usr/bin/env bash
# Runs all checks: the rules (scripts/check), then the tests on all cores, the slow ones last.
# usage: scripts/test.sh [pytest arguments]
#   Paths or node ids under tests/ among the arguments replace the whole suite, and run in one process:
#   scripts/test.sh tests/api/test_chat.py::test_x -x
# The last line of the output is pytest's. The exit status is that of pytest, or if it is 0 that of the rules.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# Several processes with spinning thread pools on a few cores make tiny models many times slower.
export OMP_NUM_THREADS=1
# Processes that tests start would compile all sources again and again.
unset PYTHONDONTWRITEBYTECODE

# Temporary files lie in memory if there is room. On a busy disk a Redis that syncs its file would stand still.
memory=""
has_room() {
    local free_kib
    free_kib=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)
    ((${free_kib:-0} > 4 * 1024 * 1024))
}
if [[ -z ${TMPDIR:-} ]] && has_room && memory=$(mktemp -d /dev/shm/aios-tests.XXXXXX); then
    trap 'rm -rf "$memory"' EXIT
    # The mode of /tmp, as some tests run as another user.
    chmod 1777 "$memory"
    # Some machines mount /dev/shm without the right to execute files, which some tests need.
    printf '#!/bin/sh\n' >"$memory/runs" && chmod +x "$memory/runs"
    ! "$memory/runs" 2>/dev/null || export TMPDIR=$memory
fi

scripts/setup_venv.sh dev
scripts/setup_node.sh
units=()
for argument in "$@"; do
    case $argument in
    tests | tests/* | ./tests/* | "$root"/tests/*) units+=("$argument") ;;
    esac
done
spread=()
if ((${#units[@]} == 0)); then
    slow=(tests/scripts tests/chaos tests/e2e)
    in_check=(tests/test_doors.py)
    mapfile -t units < <(find tests -mindepth 1 -maxdepth 1 \( -type d ! -name '[_.]*' -o -name 'test_*.py' \) |
        grep -vxF "$(printf '%s\n' "${slow[@]}" "${in_check[@]}")" | sort)
    # Backwards: those that take longest, of wheels and browsers, are not to run when all others are done.
    mapfile -t fleets < <(printf '%s\n' tests/e2e/test_*.py | sort -r)
    units+=(tests/scripts tests/chaos "${fleets[@]}")
    set -- "$@" "${units[@]}"
    cores=$(getconf _NPROCESSORS_ONLN)
    # Two processes a core, as many tests wait for other processes. No more than 8, as each process collects all tests.
    # The tests of a file stay together, as they share fleets.
    spread=(-n "$((cores < 4 ? 2 * cores : 8))" --dist loadfile --no-loadscope-reorder)
    # Beside the checks, the compiled tests are written that all processes then read.
    .venv/bin/python -m pytest -q --collect-only "${units[@]}" >/dev/null 2>&1 &
fi

rules=0
scripts/check || rules=$?
[[ $rules == 0 ]] || echo "test.sh: scripts/check failed with status $rules" >&2
wait
tests=0
.venv/bin/python -m pytest -q "${spread[@]}" "$@" || tests=$?
exit $((tests ? tests : rules))

#!/usr/bin/env bash
# Everything that must hold: the rules (scripts/check), then the tests, fast ones first. Arguments go to pytest.
# Ends with pytest's closing line; the exit status is pytest's, or else that of the rules.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export OMP_NUM_THREADS=1 # two spinning thread pools on two cores make tiny models many times slower

scripts/setup_venv.sh dev
scripts/setup_node.sh
rules=0
scripts/check || rules=$?
[[ $rules == 0 ]] || echo "test.sh: scripts/check failed with status $rules" >&2

mapfile -t units < <(find tests -mindepth 1 -maxdepth 1 \( -type d ! -name e2e ! -name '[_.]*' -o -name 'test_*.py' \) | sort)
if [[ -d tests/e2e ]]; then
    units+=(tests/e2e)
fi
tests=0
.venv/bin/python -m pytest -q "$@" "${units[@]}" || tests=$?
exit $((tests ? tests : rules))

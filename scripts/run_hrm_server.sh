#!/usr/bin/env bash
# Serves an HRM on this machine, from any directory: installs missing packages, then runs `aios serve hrm` with the
# flags of this script.
#   scripts/run_hrm_server.sh --port 8000 --model-path path/to/model
#   scripts/run_hrm_server.sh --ui     with the web app
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
extra=all
for flag in "$@"; do
    [[ $flag != --ui ]] || extra=ui
done
"$root/scripts/setup_venv.sh" "$extra"
exec "$root/.venv/bin/aios" serve hrm "$@"

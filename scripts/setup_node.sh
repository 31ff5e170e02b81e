#!/usr/bin/env bash
# Installs OpenAI's Node client for its test, if there is Node 20 or newer with npm. A second run returns at once: a
# stamp holds the hash of the lock file that was installed.
set -euo pipefail

folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/../tests/e2e/node" && pwd)

if ! { command -v npm && node -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)'; } >/dev/null 2>&1; then
    echo "setup_node: no Node 20 or newer with npm; the test of OpenAI's Node client will be skipped" >&2
    exit 0
fi
stamp=$folder/node_modules/.aios-stamp
wanted=$( { sha256sum 2>/dev/null || shasum -a 256; } <"$folder/package-lock.json")
if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
    npm ci --prefix "$folder" --ignore-scripts --no-audit --no-fund --loglevel=error
    echo "$wanted" >"$stamp"
fi

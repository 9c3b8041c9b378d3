#!/bin/sh
# Checks the engine against the bundle's answers and times it, into benchmarks/TIME.json: the measurements beside
# the gates, and latency_ms with the milliseconds of every call. The exit code is 1 where a gate fails.
set -eu

cd -- "$(dirname -- "$0")"
mkdir -p benchmarks
result=benchmarks/$(date -u +%Y%m%dT%H%M%SZ).json
trap 'rm -f "$result.partial"' EXIT

status=0
venv/bin/calipso check bundle --backend @BACKEND@ --batch @BATCHES@ --latency --json >"$result.partial" || status=$?
# A failed gate has its measurements all the same; anything else that fails prints none.
if [ -s "$result.partial" ]; then
    mv "$result.partial" "$result"
    echo "wrote $result"
fi
exit "$status"

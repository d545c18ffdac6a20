#!/usr/bin/env bash
# What only a GPU can show, in at most nine minutes: benchmarks/gpu.sh FOLDER [--rehearse]
# Wheels of packages that the machine lacks may lie in ./wheels; they are installed without an index.
set -u
cd "$(dirname "$0")/.."
[ -d wheels ] && python -m pip install -q --no-index --find-links wheels wheels/*.whl
export PYTHONPATH="$PWD"
exec python benchmarks/gpu.py "$@"

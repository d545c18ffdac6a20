#!/usr/bin/env bash
# What only a GPU can show, in at most nine minutes: benchmarks/gpu.sh FOLDER [--rehearse] [--only PART ...]
# Packages that the machine lacks may lie in ./wheels; they are installed without an index, into a folder that is
# removed. To a machine with torch, transformers, peft, lightning, torchmetrics, pyarrow, pytest, pillow, matplotlib,
# requests and what these need, add
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_24_x86_64 -d wheels \
#     omegaconf jsonargparse docstring_parser typeshed_client defusedxml bitsandbytes datasets dill multiprocess trl
# (45 MB; the last four are for the comparison with TRL).
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD"
if compgen -G "wheels/*.whl" > /dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  # A wheel that does not fit costs the part that needs it, not the others.
  for wheel in wheels/*.whl; do
    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheel" || echo "not installed: $wheel"
  done
  export PYTHONPATH="$PWD:$site"
fi
python3 benchmarks/gpu.py --seconds $((540 - SECONDS)) "$@"

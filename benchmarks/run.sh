#!/usr/bin/env bash
# Measures the program beside its peers and writes what it finds to benchmarks/RESULTS.md.
#
#   benchmarks/run.sh [name ...]      as in: benchmarks/run.sh neighbours retrieval; no name: all that run on a CPU
#
# Takes python3 >= 3.11 and a package index; the first time it makes .venv-benchmarks, with TensorFlow and PyTorch in
# it, in a few minutes. CIFAR-10 is read from TFDS_DATA_DIR, or downloaded. Nothing else should run on the machine.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

environment=$root/.venv-benchmarks
python=$(find_python)
"$python" -m benchmarks.run --check "$@"

make_environment "$environment"
files=(benchmarks/requirements.txt)
if nvidia-smi >/dev/null 2>&1; then # JAX's CUDA wheels; the rest is the same.
  files+=(requirements-cuda.txt)
fi
# Keyed by content: a changed requirement is installed, an unchanged one is not looked up again.
stamp=$environment/.installed-$(cat requirements.txt requirements-search.txt "${files[@]}" | cksum | cut -d ' ' -f 1)
if [ ! -e "$stamp" ]; then
  echo "Installing ${files[*]}"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "${files[@]/#/--requirement=}"
  touch "$stamp"
fi

exec "$environment/bin/python" -m benchmarks.run "$@"

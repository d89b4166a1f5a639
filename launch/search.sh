#!/usr/bin/env bash
# Makes the environment, an index of a folder's pictures with the encoder in weights/fast, and opens a page to search it.
#
#   launch/search.sh [FOLDER [flags of `simclr_cifar.search serve`]]     as in: launch/search.sh ~/Pictures --port=8001
#   CHECKPOINT=runs/c10-1a2b3c4d launch/search.sh FOLDER                 with the encoder of another run
#
# Without a folder: CIFAR-10's test images, from TFDS_DATA_DIR or downloaded, else the embedded digits. The index is kept
# in indices/; the next time only pictures that are new or changed are embedded. The page is for this machine alone. Stop
# with Ctrl-C.
set -euo pipefail
from=$PWD
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
enter_environment requirements.txt requirements-search.txt

case "${1:-}" in
  --help | -h)
    exec python -m simclr_cifar.search serve --help
    ;;
  "" | -*)
    folder=indices/pictures
    python -m simclr_cifar.search unpack --to="$folder"
    ;;
  *)
    folder=$(cd "$from" && realpath --canonicalize-missing -- "$1")
    shift
    ;;
esac
checkpoint=weights/fast
if [ -n "${CHECKPOINT:-}" ]; then
  checkpoint=$(cd "$from" && realpath --canonicalize-missing -- "$CHECKPOINT")
fi
# An index is of one folder and one encoder.
index=indices/$(basename -- "$folder" | tr -c '[:alnum:]\n' -)-$({
  printf '%s\n' "$folder" "$checkpoint"
  cat "$checkpoint/weights.npz" 2>/dev/null || true
} | cksum | cut -d ' ' -f 1)
python -m simclr_cifar.search build --checkpoint="$checkpoint" --images="$folder" --index="$index"
exec python -m simclr_cifar.search serve --index="$index" "$@"

#!/usr/bin/env bash
# Makes the environment, an index of a folder's pictures with the encoder in weights/fast, and opens a page to search it.
#
#   launch/search.sh [FOLDER [flags of `simclr_cifar.search serve`]]     as in: launch/search.sh ~/Pictures --port=8001
#   CHECKPOINT=runs/c10-1a2b3c4d launch/search.sh FOLDER                 with the encoder of another run
#
# It runs from any folder; FOLDER and CHECKPOINT are paths from there. Without FOLDER: CIFAR-10's test images, from
# TFDS_DATA_DIR or downloaded, else the embedded digits. The index is kept in the checkout's indices/, never among the
# pictures; the next time only pictures that are new or changed are embedded. The page is for this machine alone. Stop
# with Ctrl-C.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
enter_environment requirements.txt requirements-search.txt

absolute() { # macOS has no realpath --canonicalize-missing.
  (CDPATH='' cd -- "$1" 2>/dev/null && pwd -P) || case $1 in
    /*) printf '%s\n' "$1" ;;
    *) printf '%s\n' "$PWD/$1" ;;
  esac
}

case "${1:-}" in
  --help | -h)
    exec "$python" -P -m simclr_cifar.search serve --help
    ;;
  "" | -*)
    folder=$root/indices/pictures names=(indices/pictures)
    "$python" -P -m simclr_cifar.search unpack --to="$folder"
    ;;
  *)
    folder=$(absolute "$1")
    names=("$folder")
    shift
    ;;
esac
if [ -n "${CHECKPOINT:-}" ]; then
  checkpoint=$(absolute "$CHECKPOINT")
  names+=("$checkpoint")
else
  checkpoint=$root/weights/fast
  names+=(weights/fast)
fi
# An index is of one folder and one encoder. The defaults count by their short names, so that an index which an earlier
# version made, or one in a checkout that moved, is found.
index=$root/indices/$(basename -- "$folder" | tr -c '[:alnum:]\n' -)-$({
  printf '%s\n' "${names[@]}"
  cat "$checkpoint/weights.npz" 2>/dev/null || true
} | cksum | cut -d ' ' -f 1)
"$python" -P -m simclr_cifar.search build --checkpoint="$checkpoint" --images="$folder" --index="$index"
exec "$python" -P -m simclr_cifar.search serve --index="$index" "$@"

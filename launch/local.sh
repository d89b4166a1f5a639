#!/usr/bin/env bash
# Makes the environment and runs the main job on this machine: trains, evaluates and reports on CIFAR-10.
#
#   launch/local.sh [flags of simclr_cifar.main]      as in: launch/local.sh --config=configs/c4.py --config.num_epochs=15
#   launch/local.sh --mode=study                      the study of configs/study.py
#   launch/local.sh --mode=doctor                     whether this machine is fit, in under a minute
#
# Takes python3 >= 3.11, a package index and, the first time, a minute or two. CIFAR-10 is read from TFDS_DATA_DIR or
# --data_dir, or downloaded; where it is neither there nor to be downloaded, the embedded digits take its place, and
# the run's name, titles and files say so. Stop with Ctrl-C; the same command goes on from the newest checkpoint.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
enter_environment requirements.txt

flags=("$@")
case " $*" in
  *" --config="* | *" --config "* | *" -config="* | *" --help"* | *" --mode=eval"*) ;;
  *" --mode=study"*) flags=(--config=configs/study.py "$@") ;;
  *) flags=(--config=configs/c10.py "$@") ;;
esac

case " $*" in
  *" --help"* | *" --mode=eval"* | *" --mode=prepare"* | *" --mode=doctor"* | *" --data_dir"*) ;; # No falling back.
  *)
    status=0
    found=$(python -m simclr_cifar.main "${flags[@]}" --mode=prepare) || status=$?
    if [ "$status" -eq 3 ]; then
      echo "Training on the embedded digits instead of CIFAR-10: ${found##*$'\n'}"
      flags+=(--config.dataset=digits)
    elif [ "$status" -ne 0 ]; then
      exit "$status"
    fi
    ;;
esac

exec python -m simclr_cifar.main "${flags[@]}"

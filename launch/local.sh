#!/usr/bin/env bash
# Makes the environment and runs the main job on this machine: trains, evaluates and reports on CIFAR-10.
#
#   launch/local.sh [flags of simclr_cifar.main]      as in: launch/local.sh --config=configs/c4.py --config.num_epochs=15
#   launch/local.sh --mode=study                      the study of configs/study.py
#   launch/local.sh --mode=doctor                     whether this machine is fit, in under a minute
#
# It runs from any folder. Relative paths, the default folder runs/ too, are of the folder that you call it from.
#
# Takes python3 >= 3.11, a package index and, the first time, a minute or two. CIFAR-10 is read from TFDS_DATA_DIR or
# --data_dir, or downloaded. If it is not on disk and cannot be downloaded, the script tells you and trains on the
# embedded digits, unless a flag names the data; the run's name, titles and files say so. Stop with Ctrl-C; the same
# command goes on from the newest checkpoint.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
enter_environment requirements.txt

mode=train config='' has_data='' help='' before=''
for argument in "$@"; do # As absl reads them: --flag=value, -flag=value, --flag value; the last one counts.
  case $before$argument in
    --mode=* | -mode=*) mode=${argument#*mode=} ;;
    --config=* | -config=*) config=yes ;;
    --data_dir=* | -data_dir=* | --config.dataset=* | -config.dataset=*) has_data=yes ;;
    --help* | -help* | '-?') help=yes ;;
  esac
  case $argument in
    --mode | -mode | --config | -config | --data_dir | -data_dir | --config.dataset | -config.dataset) before=$argument= ;;
    *) before='' ;;
  esac
done

flags=("$@")
if [ -z "$config$help" ]; then
  case $mode in
    eval) ;;
    study) flags=("--config=$root/configs/study.py" "$@") ;;
    *) flags=("--config=$root/configs/c10.py" "$@") ;;
  esac
fi

if [ -z "$has_data$help" ] && { [ "$mode" = train ] || [ "$mode" = study ]; }; then
  status=0
  answer=$("$python" -P -m simclr_cifar.main "${flags[@]}" --mode=prepare) || status=$?
  if [ "$status" -eq 3 ]; then
    echo "Training on the embedded digits instead of CIFAR-10: ${answer##*$'\n'}"
    flags+=(--config.dataset=digits)
  elif [ "$status" -ne 0 ]; then
    exit "$status"
  fi
fi

exec "$python" -P -m simclr_cifar.main "${flags[@]}"

#!/usr/bin/env bash
# Makes the environment, as launch/local.sh does, and runs the tests.
#
#   launch/test.sh [arguments of pytest]      as in: launch/test.sh tests/test_objectives.py -k gradient
#
# It runs from any folder. Without a path among the arguments it runs all tests; a relative path is the caller's. If
# TFDS_DATA_DIR holds CIFAR-10, the tests on it run too.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
enter_environment requirements.txt requirements-test.txt

# pytest would otherwise collect the caller's folder.
flags=("--config-file=$root/pyproject.toml" "--rootdir=$root" --numprocesses=2)
paths=no before=''
for argument in "$@"; do
  case $before in
    -k | -m | -n | -p | -o | -W) ;; # Its value, which may be named as a file is.
    *) if [ -e "${argument%%::*}" ]; then paths=yes; fi ;;
  esac
  before=$argument
done
if [ "$paths" = no ]; then
  flags+=("$root/tests")
fi
exec "$python" -P -m pytest "${flags[@]}" "$@"

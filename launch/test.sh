#!/usr/bin/env bash
# Makes the environment, as launch/local.sh does, and runs the tests.
#
#   launch/test.sh [arguments of pytest]      as in: launch/test.sh tests/test_objectives.py -k gradient
#
# Where TFDS_DATA_DIR holds CIFAR-10, the tests on it run too.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
enter_environment requirements.txt requirements-test.txt

exec python -m pytest --numprocesses=2 "$@"

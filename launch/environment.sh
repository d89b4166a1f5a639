# shellcheck shell=bash
# Sourced by the scripts beside it. `enter_environment REQUIREMENTS_FILE ...` goes to the repository's root, makes
# .venv there and activates it: a minute or two the first time, at once when nothing has changed.
#
# PYTHON names the interpreter to use; otherwise the first found that is 3.11 or newer.

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.12 python3.13 python3.11 python3 python}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no python3 of version 3.11 or newer with venv; install one (Debian: apt install python3-venv) or name it with PYTHON=..." >&2
  return 2
}

enter_environment() {
  local python file stamp
  local files=("$@")
  cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

  if [ ! -e .venv/.made ]; then
    python=$(find_python) || exit 2
    echo "Making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv || exit 1
    touch .venv/.made
  fi
  # shellcheck source=/dev/null
  source .venv/bin/activate

  if nvidia-smi >/dev/null 2>&1; then # The first file's CUDA form.
    files[0]=requirements-cuda.txt
  fi
  for file in "${files[@]}"; do
    # Keyed by content: a changed requirement is installed, an unchanged one is not looked up again.
    stamp=.venv/.installed-$file-$(cat requirements.txt requirements-search.txt "$file" | cksum | cut -d ' ' -f 1)
    if [ ! -e "$stamp" ]; then
      echo "Installing $file"
      python -m pip install --quiet --disable-pip-version-check -r "$file" || exit 1
      touch "$stamp"
    fi
  done
}

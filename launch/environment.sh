# shellcheck shell=bash
# Sourced by the scripts beside it. `enter_environment REQUIREMENTS_FILE ...` makes .venv in the checkout: a minute or
# two the first time, at once if nothing has changed. It sets `root`, the checkout, and `python`, the Python of .venv.
# It does not change the folder: a relative path in a flag is the caller's.
#
# PYTHON names the interpreter that makes .venv; default: the first found that is 3.11 or newer.
#
# These scripts run under bash 3.2, which macOS has.

# CDPATH would take `cd launch/..` elsewhere, and print where.
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd) || exit 1
# With PYTHONHOME every interpreter takes that folder for its own, and a sound .venv looks broken.
unset PYTHONHOME

find_python() {
  local candidate
  local candidates=(python3.12 python3.13 python3.11 python3 python)
  if [ -n "${PYTHON:-}" ]; then
    candidates=("$PYTHON")
  fi
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  if [ -n "${PYTHON:-}" ]; then
    echo "error: PYTHON=$PYTHON: does not start, is older than 3.11 or has no venv; name another, or leave PYTHON out" >&2
  else
    echo "error: no python3 of version 3.11 or newer with venv; install one (Debian: apt install python3-venv) or name it with PYTHON=..." >&2
  fi
  return 2
}

# Succeeds if the Python of the virtual environment starts and takes that folder for its own. Another one would install
# packages elsewhere, as into the system's Python.
is_sound() {
  "$1/bin/python" -I -c 'import importlib.util, os, sys
own = sys.prefix != sys.base_prefix and os.path.samefile(sys.prefix, sys.argv[1])
sys.exit(not (own and importlib.util.find_spec("pip")))' "$1" 2>/dev/null
}

# Makes the virtual environment FOLDER, or keeps it if it is sound. The file .made says that these scripts made the
# folder; until it is whole, .made holds the number and the machine of the process that makes it. Without .made the
# folder is somebody's own, and nothing here changes or removes it.
make_environment() {
  local folder=$1 maker='' machine='' new_python
  if [ -e "$folder" ] || [ -L "$folder" ]; then
    if [ ! -e "$folder/.made" ]; then
      echo "error: $folder: these scripts did not make it and leave it alone; move it away (mv $folder $folder-mine) and run this again, or run the program with it yourself" >&2
      return 2
    fi
    read -r maker machine <"$folder/.made" || true
    if [ -z "$maker" ] && is_sound "$folder"; then
      return
    fi
    if [ -n "$maker" ] && { [ "$machine" != "$(uname -n)" ] || kill -0 "$maker" 2>/dev/null; }; then
      echo "error: $folder: process $maker on $machine is making it; wait for it, or remove the folder if that process is gone" >&2
      return 2
    fi
  fi
  new_python=$(find_python) || return 2
  echo "Making $folder with $("$new_python" --version)"
  rm -rf "$folder"
  if ! { mkdir "$folder" && echo "$$ $(uname -n)" >"$folder/.made"; }; then
    echo "error: $folder: cannot be made; free it, or put the checkout into a folder that can be written" >&2
    return 2
  fi
  "$new_python" -m venv "$folder" || return 1
  : >"$folder/.made"
}

enter_environment() {
  local file stamp
  local files=("$@")
  make_environment "$root/.venv" || exit
  # By its path, never through `activate`: that file names the folder in which the environment was made.
  python=$root/.venv/bin/python

  if nvidia-smi >/dev/null 2>&1; then # The first file's CUDA form.
    files[0]=requirements-cuda.txt
  fi
  for file in "${files[@]}"; do
    # Keyed by content: a changed requirement is installed, an unchanged one is not looked up again.
    stamp=$root/.venv/.installed-$file-$(cat "$root/requirements.txt" "$root/requirements-search.txt" "$root/$file" | cksum | cut -d ' ' -f 1)
    if [ ! -e "$stamp" ]; then
      echo "Installing $file"
      # -I: a package of somebody's PYTHONPATH does not count as installed.
      "$python" -I -m pip install --quiet --disable-pip-version-check -r "$root/$file" || exit 1
      touch "$stamp"
    fi
  done
  # The package is found from any folder. The scripts call Python with -P, so that a random.py or another checkout in
  # the caller's folder does not take a module's place.
  export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
}

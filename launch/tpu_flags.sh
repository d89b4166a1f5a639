# shellcheck shell=bash disable=SC2034
# Sourced by launch/tpu_vm.sh: reads its flags, and checks on this machine all that can be checked before a TPU costs
# money. It sets `root`, the checkout, a variable for each flag, and `program`, the program's flags as the TPU gets them.
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { echo "$@" 2>/dev/null || true; }
refuse() {
  say "error: $*" >&2
  exit 2
}

name='' zone='' type='' version='' spot='' keep='' reuse='' dry_run='' fetch_every=10 only=''
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --fetch_every=*) fetch_every=${1#*=} ;;
    --spot) spot=--spot ;;
    --keep) keep=yes ;;
    --reuse) reuse=yes ;;
    --dry_run) dry_run=yes ;;
    --look | --delete) only=${1#--} ;;
    --) break ;;
    *) refuse "$1: unknown; the head of launch/tpu_vm.sh tells what there is, and flags of the program come after --" ;;
  esac
  shift
done
for flag in name zone type; do
  if [ -z "${!flag}" ] && { [ "$flag" != type ] || [ -z "$only$reuse" ]; }; then
    refuse "--$flag is missing, as in --name=trial --zone=us-east5-b --type=v6e-16"
  fi
done
if [[ ! $name =~ ^[a-z][a-z0-9-]*$ ]]; then
  refuse "--name=$name: lower-case letters, digits and hyphens, the first a letter"
fi
if [[ ! $fetch_every =~ ^[1-9][0-9]{0,3}$ ]]; then
  refuse "--fetch_every=$fetch_every: whole minutes, from 1 to 9999"
fi
if [ -z "$version" ]; then
  case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi

if [ -z "$dry_run" ] && ! command -v gcloud >/dev/null; then
  refuse "gcloud: not found; install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install)"
fi
if [ -n "$only" ]; then
  return
fi

command -v git >/dev/null || refuse "git: not found; install it, as the commit of this checkout is what runs"
answer=$(git -C "$root" cat-file -e HEAD:./simclr_cifar/main.py 2>&1) ||
  refuse "git: $root: has no commit with simclr_cifar in it (${answer##*$'\n'}); use a checkout that git made"
answer=$(git -C "$root" status --porcelain -- simclr_cifar configs 'requirements*.txt' 2>&1) ||
  refuse "git status: fails in $root (${answer##*$'\n'})"
if [ -n "$answer" ]; then
  refuse "git status: the commit is what runs, and it lacks your changes in $(printf '%s\n' "$answer" | cut -c 4- | head -n 3 | paste -s -d ' ' -); commit them, or put them aside with git stash -u"
fi

# The program gets --config as a path in the commit.
program=() has_config='' before=''
check() { # FLAG VALUE
  local folder file=${2%%.py:*} inside
  case $1 in
    workdir | stopped_status) refuse "--$1=$2: this script sets it; the run is runs/$name here" ;;
    data_dir | config.dataset)
      case $1=$2 in
        data_dir=gs://*) ;;
        data_dir=* | *=folder:* | *=images:*)
          [ -n "$reuse" ] || refuse "--$1=$2: a new TPU has no such folder; leave it out for CIFAR-10, which each worker downloads, or put the data onto a TPU that you keep, and --reuse it" ;;
      esac
      program+=("--$1=$2")
      ;;
    config)
      if [ "$file" != "$2" ]; then
        file=$file.py
      fi
      [ -f "$file" ] || refuse "--config=$2: there is no such file; a relative path starts at $PWD"
      folder=$(CDPATH='' cd -- "$(dirname -- "$file")" && pwd -P)
      inside=$folder/$(basename -- "$file")
      case $inside in
        "$root"/*) inside=${inside#"$root"/} ;;
        *) refuse "--config=$2: is outside of the checkout $root, whose commit is what runs; put it into configs/ and commit it" ;;
      esac
      if ! { git -C "$root" cat-file -e "HEAD:./$inside" && git -C "$root" diff --quiet HEAD -- "$inside"; } 2>/dev/null; then
        refuse "--config=$2: is not in the commit as it is here, and the commit is what runs; commit it"
      fi
      has_config=yes
      program+=("--config=$inside${2#"$file"}")
      ;;
  esac
}
[ "${1:-}" != -- ] || shift
for argument in "$@"; do
  case $before$argument in
    -config=* | --config=* | -workdir=* | --workdir=* | -stopped_status=* | --stopped_status=* | -data_dir=* | --data_dir=* | -config.dataset=* | --config.dataset=*)
      flag=$before$argument flag=${flag#-} flag=${flag#-}
      check "${flag%%=*}" "${flag#*=}"
      before=''
      ;;
    -config | --config | -workdir | --workdir | -stopped_status | --stopped_status | -data_dir | --data_dir | -config.dataset | --config.dataset) before=$argument= ;;
    *) program+=("$argument") ;;
  esac
done
[ -n "$has_config" ] || refuse "--config is missing after --, as in -- --config=configs/simclr_r18.py"

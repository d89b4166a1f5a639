#!/usr/bin/env bash
# Trains on a Cloud TPU of any size: asks for it, installs, runs on all its workers, fetches the run, gives it back.
#
#   Set-up   gcloud, signed in, with a project that has the Cloud TPU API and quota for the type (minutes, once).
#            A TPU costs money from the minute it is there until it is deleted, which this script does at its end, also
#            after a failure; after --keep it is yours to delete.
#   Run      launch/tpu_vm.sh --name=trial --zone=us-east5-b --type=v6e-16 -- --config=configs/simclr_r18.py
#   Look     its output; launch/tpu_vm.sh --name=trial --zone=us-east5-b --look
#   Stop     Ctrl-C, or from elsewhere: launch/tpu_vm.sh --name=trial --zone=us-east5-b --delete
#
#   --spot         a third of the price, and taken away at any time: asked for again then, and the run goes on
#   --version=...  the TPU VM's software; default: what goes with the type
#   --fetch_every  minutes from one fetching of the run into runs/<name> to the next (10); what a lost TPU can cost
#   --keep         leaves the TPU there at the end
#   --dry_run      prints every command and runs none
#
# What comes after -- goes to simclr_cifar.main; every worker is a process of it, so choose --config.groups_per_batch as
# a multiple of their number. The commit of this checkout is what runs. CIFAR-10 is downloaded by each worker.
#
# Tried with a stand-in for gcloud that notes what it is asked, as tests/test_launch.py does. Not tried: a real TPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name='' zone='' type='' version='' spot='' keep='' dry_run='' fetch_every=10 only=''
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --fetch_every=*) fetch_every=${1#*=} ;;
    --spot) spot=--spot ;;
    --keep) keep=yes ;;
    --dry_run) dry_run=yes ;;
    --look | --delete) only=${1#--} ;;
    --)
      shift
      break
      ;;
    *)
      echo "error: $1: unknown; the head of launch/tpu_vm.sh tells what there is, and flags of the program come after --" >&2
      exit 2
      ;;
  esac
  shift
done
for flag in name zone type; do
  if [ -z "${!flag}" ] && { [ "$flag" != type ] || [ -z "$only" ]; }; then
    echo "error: --$flag is missing, as in --name=trial --zone=us-east5-b --type=v6e-16" >&2
    exit 2
  fi
done
if [[ ! $name =~ ^[a-z][a-z0-9-]*$ ]]; then
  echo "error: --name=$name: lower-case letters, digits and hyphens, the first a letter" >&2
  exit 2
fi
if [ -z "$version" ]; then
  case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi

run() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
queued() { run gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"; }
on_all() { run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }
copy() { run gcloud compute tpus tpu-vm scp --recurse --zone="$zone" "$@"; }
state() {
  if [ -n "$dry_run" ]; then
    queued describe '--format=value(state.state)' >&2
    echo ACTIVE
  else
    queued describe '--format=value(state.state)' 2>/dev/null || {
      gcloud compute tpus queued-resources list --zone="$zone" >/dev/null || exit 1 # Not this TPU but the asking is at fault.
      echo GONE
    }
  fi
}

case $only in
  look)
    queued describe
    on_all 'tail -n 3 run.log'
    exit
    ;;
  delete)
    queued delete --force --quiet
    exit
    ;;
esac

fetch() { # Into a folder beside first, so that no half of it takes the place of a whole.
  local partial="runs/.$name-$BASHPID"
  run mkdir -p runs && run rm -rf "$partial" && copy --worker=0 "$name:run" "$partial" &&
    run rm -rf "runs/$name" && run mv "$partial" "runs/$name"
}

fetching='' created='' unfetched=''
stopped=$(mktemp -d)/stopped
stop_fetching() { # Not in the midst of it.
  if [ -n "$fetching" ]; then
    touch "$stopped"
    pkill -P "$fetching" -x sleep || true
    wait "$fetching" || true
    rm "$stopped"
    fetching=''
  fi
}
# shellcheck disable=SC2317 # The trap calls it.
finish() {
  stop_fetching
  if [ -z "$created" ]; then
    return # Nothing of this script's is there.
  fi
  if [ -n "$unfetched" ] && ! fetch; then
    echo "The run could not be fetched. The TPU is still there, and costs money: fetch it, then --delete" >&2
  elif [ -z "$keep" ]; then
    queued delete --force --quiet
  fi
}
trap finish EXIT

while true; do
  if [ "$(state)" = GONE ] || [ -n "$dry_run" ]; then
    queued create --node-id="$name" --accelerator-type="$type" --runtime-version="$version" ${spot:+"$spot"}
  fi
  created=yes
  echo "Waiting for a $type in $zone"
  while [ "$(state)" != ACTIVE ]; do
    case $(state) in
      FAILED | SUSPENDED | GONE)
        echo "error: --type=$type: the request has failed; is there quota for it in $zone, and does it take --version=$version?" >&2
        exit 1
        ;;
    esac
    sleep 20
  done

  archive=$(mktemp -d)/code.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD
  copy --worker=all "$archive" "$name:code.tar.gz"
  on_all 'set -e; mkdir -p code; tar -xzf code.tar.gz -C code; cd code
    if [ ! -d .venv ]; then
      sudo apt-get update -qq; sudo apt-get install -y -qq python3.11 python3.11-venv; python3.11 -m venv .venv
    fi
    .venv/bin/pip install --quiet -r requirements-tpu.txt'
  if [ -d "runs/$name" ]; then # Of a TPU that was taken away, or of before; one that was kept has its own.
    run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=0 --command='test -d run' ||
      copy --worker=0 "runs/$name" "$name:run"
  fi

  if [ -z "$dry_run" ]; then
    (while [ ! -e "$stopped" ] && sleep $((60 * fetch_every)); do fetch >/dev/null 2>&1 || true; done) &
    fetching=$!
  fi
  unfetched=yes
  # Workers tell each other from the TPU's own environment.
  status=0
  on_all "set -o pipefail; cd code && .venv/bin/python -m simclr_cifar.main --workdir=../run --stopped_status=75$(printf ' %q' "$@") 2>&1 | tee -a ../run.log" || status=$?
  stop_fetching
  if [ "$status" -ne 0 ]; then
    sleep 60 # A TPU that was taken away is not at once said to be.
  fi
  if [ "$status" -eq 0 ] || [ "$(state)" = ACTIVE ]; then
    break
  fi
  echo "The TPU was taken away: asking for another"
  unfetched=''
  queued delete --force --quiet || true
done

if fetch; then
  unfetched=''
  echo "The run: runs/$name"
fi
exit "$status"

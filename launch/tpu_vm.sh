#!/usr/bin/env bash
# Trains on a Cloud TPU of any size: asks for it, installs, runs on all its workers, fetches the run, gives it back.
#
#   Set-up   gcloud, signed in, with a project that has the Cloud TPU API and quota for the type (minutes, once).
#            A TPU costs money from the minute it is there until it is deleted. This script deletes the one that it
#            created at its end, also after a failure. If it cannot, or after --keep, it tells you how to.
#   Run      launch/tpu_vm.sh --name=trial --zone=us-east5-b --type=v6e-16 -- --config=configs/simclr_r18.py
#   Look     its output; launch/tpu_vm.sh --name=trial --zone=us-east5-b --look
#   Stop     Ctrl-C, or from elsewhere: launch/tpu_vm.sh --name=trial --zone=us-east5-b --delete
#
#   --spot         a third of the price, and taken away at any time: asked for again then, and the run goes on
#   --version=...  the TPU VM's software; default: what goes with the type
#   --fetch_every  minutes from one fetching of the run into runs/<name> to the next (10); what a lost TPU can cost
#   --keep         leaves the TPU there at the end
#   --reuse        takes the TPU of this name that is there already, as one of --keep, and never deletes it
#   --dry_run      prints every command and runs none
#
# What comes after -- goes to simclr_cifar.main; every worker is a process of it, so choose --config.groups_per_batch as
# a multiple of their number. The commit of this checkout is what runs. CIFAR-10 is downloaded by each worker. Relative
# paths, that of runs/<name> too, are of the folder that you call this from. Each fetching replaces runs/<name>.
#
# Tried with a stand-in for gcloud that notes what it is asked, as tests/test_launch_tpu.py does, and under bash 3.2.
# Not tried: a real TPU.
if [ -z "${BASH_VERSION:-}" ]; then
  echo "error: this is not bash; run launch/tpu_vm.sh itself, or bash launch/tpu_vm.sh" >&2
  exit 2
fi
set -euo pipefail
export CLOUDSDK_CORE_DISABLE_PROMPTS=1 # A question that nobody answers would wait while the TPU costs money.
trap '' PIPE                           # Output that closes does not end this script before the TPU is deleted.
# shellcheck source=launch/tpu_flags.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/tpu_flags.sh" "$@"

run() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  elif [ -n "${in_background:-}" ]; then
    exec "$@" # No shell between, which would keep a signal from it.
  else
    "$@"
  fi
}
queued() { run gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"; }
on() { run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker="$1" --command="$2"; }
copy() { run gcloud compute tpus tpu-vm scp --recurse --zone="$zone" "$@"; }
is_listed() { printf '%s\n' "$1" | grep -qE "(^|/)$name\$"; }

case $only in
  look)
    queued describe
    on all 'tail -n 3 run.log'
    exit
    ;;
  delete)
    queued delete --force --quiet
    exit
    ;;
esac

scratch=$(mktemp -d)
stopped=$scratch/stopped fetching='' training='' created='' unfetched='' has_run=''
state() { # Prints GONE if there is no TPU of this name, UNKNOWN if gcloud cannot tell.
  local answer
  if [ -n "$dry_run" ]; then
    queued describe '--format=value(state.state)' >&2
    echo ACTIVE
  elif answer=$(queued describe '--format=value(state.state)' 2>/dev/null) && [ -n "$answer" ]; then
    echo "$answer"
  elif answer=$(gcloud compute tpus queued-resources list --zone="$zone" '--format=value(name)' 2>"$scratch/message") &&
    ! is_listed "$answer"; then
    echo GONE
  else
    echo UNKNOWN
  fi
}
known_state() { # Asks for five minutes if gcloud cannot tell: a bad network for a moment is no lost TPU.
  local attempt now=UNKNOWN
  for ((attempt = 0; attempt < 15; attempt++)); do
    now=$(state)
    [ "$now" = UNKNOWN ] || break
    sleep 20
  done
  echo "$now"
}
has_own_run() { # Prints whether the TPU has a run; fails if the TPU does not answer.
  on 0 'if [ -d run ]; then echo there; else echo none; fi'
}

fetch() { # Into a folder beside first, so that no half of it takes the place of a whole.
  local partial="runs/.$name-$$" old="runs/.$name-old-$$" answer
  answer=$(has_own_run) || return 1
  [ -z "$dry_run" ] || echo "$answer"
  case $answer in
    *there*) ;;
    *none*) return 0 ;; # The program ended before it wrote anything.
    *) return 1 ;;
  esac
  run mkdir -p runs && run rm -rf "$partial" "$old" && copy --worker=0 "$name:run" "$partial" || return 1
  if [ -d "runs/$name" ]; then
    run mv "runs/$name" "$old" || return 1
  fi
  run mv "$partial" "runs/$name" && run rm -rf "$old" || return 1
  has_run=yes
}
stop_fetching() { # Not in the midst of it.
  if [ -n "$fetching" ]; then
    touch "$stopped"
    wait "$fetching" || true
    rm -f "$stopped"
    fetching=''
  fi
}
# shellcheck disable=SC2329 # The trap calls it.
still_costs() {
  say "The TPU $name is still there and costs money. To delete it: launch/tpu_vm.sh --name=$name --zone=$zone --delete" >&2
}
# shellcheck disable=SC2329
finish() {
  local status=$?
  set +e
  trap - EXIT
  trap '' HUP # A terminal that closes may send it twice.
  trap 'still_costs; exit 130' INT TERM
  if [ -z "$created" ]; then
    trap - INT TERM # Nothing of this call's is there.
  elif [ "$created" = perhaps ]; then
    say "error: creating the TPU did not end well; look whether there is one: launch/tpu_vm.sh --name=$name --zone=$zone --look" >&2
    still_costs
  else
    if [ -n "$training" ]; then
      kill "$training" 2>/dev/null
    fi
    stop_fetching
    if [ -n "$unfetched" ] && ! fetch; then
      [ "$status" -ne 0 ] || status=1
      say "error: the run could not be fetched, so the TPU was not deleted. To fetch it: gcloud compute tpus tpu-vm scp --recurse --zone=$zone --worker=0 $name:run runs/$name" >&2
      still_costs
    elif [ -n "$keep$reuse" ]; then
      still_costs
    elif ! queued delete --force --quiet && [ "$(state)" != GONE ]; then
      [ "$status" -ne 0 ] || status=1
      say "error: the TPU could not be deleted" >&2
      still_costs
    fi
  fi
  rm -rf "$scratch"
  exit "$status"
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

archive=$scratch/code.tar.gz
run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
if [ -z "$dry_run" ]; then
  if ! { nodes=$(gcloud compute tpus tpu-vm list --zone="$zone" '--format=value(name)' 2>"$scratch/message") &&
    now=$(state) && [ "$now" != UNKNOWN ]; }; then
    message=$(grep -v '^ *$' "$scratch/message" | head -n 1 || true)
    refuse "gcloud: cannot list the TPUs of --zone=$zone (${message:-no reason given}); sign in (gcloud auth login), set the project (gcloud config set project ...) and check the zone"
  fi
  if [ "$now" = GONE ] && is_listed "$nodes"; then
    now=ACTIVE # Made without a queued resource.
    [ -z "$reuse" ] || refuse "--name=$name: is a TPU without a queued resource, which --reuse cannot take; choose another name"
  fi
  if [ "$now" != GONE ] && [ -z "$reuse" ]; then
    refuse "--name=$name: a TPU of this name is there already ($now); choose another name, or take it with --reuse, which never deletes it"
  elif [ "$now" = GONE ] && [ -n "$reuse" ]; then
    refuse "--reuse: there is no TPU named $name in $zone; leave --reuse out, and one is created"
  fi
fi

while true; do
  if [ -n "$reuse" ]; then
    created=no
  else
    created=perhaps
    queued create --node-id="$name" --accelerator-type="$type" --runtime-version="$version" ${spot:+"$spot"} || {
      [ "$(known_state)" != GONE ] || created='' # Nothing is there.
      refuse "--type=$type: cannot be asked for in $zone; gcloud says why"
    }
    created=yes
  fi
  say "Waiting for ${type:-$name} in $zone"
  while true; do
    now=$(known_state)
    case $now in
      ACTIVE) break ;;
      UNKNOWN)
        say "error: gcloud no longer tells the state of the TPU; is the network there, and are you still signed in?" >&2
        exit 1
        ;;
      FAILED | SUSPENDED | GONE)
        say "error: --type=$type: the request has failed ($now); is there quota for it in $zone, and does it take --version=$version?" >&2
        exit 1
        ;;
    esac
    sleep 20
  done

  copy --worker=all "$archive" "$name:code.tar.gz"
  on all 'set -e; mkdir -p code; tar -xzf code.tar.gz -C code; cd code
    if [ ! -d .venv ]; then
      sudo apt-get update -qq; sudo apt-get install -y -qq python3.11 python3.11-venv; python3.11 -m venv .venv
    fi
    .venv/bin/pip install --quiet -r requirements-tpu.txt'
  if [ -d "runs/$name" ]; then # Of a TPU that was taken away, or of before; one that was kept has its own.
    answer=$(has_own_run)
    case $dry_run$answer in
      yes*) copy --worker=0 "runs/$name" "$name:run" ;; # A dry run asks nothing.
      *there*) # Fetching replaces it, and it may be another run.
        before=runs/$name-before-$(date +%Y%m%d-%H%M%S)
        mv "runs/$name" "$before"
        say "The TPU has a run of its own; what was in runs/$name is in $before"
        ;;
      *) copy --worker=0 "runs/$name" "$name:run" ;;
    esac
  fi

  if [ -z "$dry_run" ]; then
    (
      trap '' HUP INT # A closed terminal or Ctrl-C does not end it in its midst; stop_fetching does, at its end.
      waited=0
      while [ ! -e "$stopped" ]; do
        sleep 2
        waited=$((waited + 2))
        if [ "$waited" -ge $((60 * fetch_every)) ]; then
          fetch >/dev/null 2>&1 || say "The run could not be fetched; it is tried again in $fetch_every minutes" >&2
          waited=0
        fi
      done
    ) &
    fetching=$!
  fi
  unfetched=yes
  # Workers tell each other from the TPU's own environment. Waited for in the background, as bash hears no signal while a command runs in front.
  status=0
  in_background=yes on all "set -o pipefail; cd code && .venv/bin/python -m simclr_cifar.main --workdir=../run --stopped_status=75$(printf ' %q' "${program[@]}") 2>&1 | tee -a ../run.log" &
  training=$!
  wait "$training" || status=$?
  training=''
  stop_fetching
  if [ "$status" -eq 0 ]; then
    break
  fi
  [ -n "$dry_run" ] || sleep 60 # A TPU that was taken away is not at once said to be.
  now=$(known_state)
  case $now in
    ACTIVE) break ;;
    UNKNOWN) # It may well be there, with what is not fetched.
      say "error: gcloud no longer tells the state of the TPU; is the network there, and are you still signed in?" >&2
      exit "$status"
      ;;
  esac
  unfetched=''
  if [ "$now" = GONE ] || [ "$now" = DELETING ]; then # One that is taken away stays, as SUSPENDED.
    created=''
    say "error: --name=$name: the TPU was deleted from elsewhere; runs/$name has what was fetched, and the same command goes on" >&2
    exit "$status"
  elif [ -n "$reuse" ]; then
    say "error: --reuse: the TPU was taken away; runs/$name has what was fetched; delete it, and leave --reuse out for a new one" >&2
    exit "$status"
  fi
  say "The TPU was taken away: asking for another"
  queued delete --force --quiet
  created=''
  for ((attempt = 0; attempt < 15; attempt++)); do
    [ "$(state)" != GONE ] || break
    sleep 20
  done
done

if fetch; then
  unfetched=''
  if [ -n "$has_run" ]; then
    say "The run: runs/$name"
  else
    say "The program wrote no run"
  fi
fi
exit "$status"

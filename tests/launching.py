"""What the tests of the launch files share: stand-ins for programs, and a bash like that of macOS."""

import os
import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).parent.parent

# Names an older bash, to run the launch files under it.
BASH = os.environ.get('LAUNCH_BASH', 'bash')

# What bash 3.2 lacks, for a newer one that reads it through BASH_ENV: BASHPID is unbound, `wait -n` an invalid option.
OLD_BASH = """
unset BASHPID
enable -n mapfile readarray coproc 2>/dev/null
wait() { case "${1:-}" in -*) return 2 ;; esac; builtin wait "$@"; }
"""


def write_program(path: pathlib.Path, content: str) -> None:
    """Writes an executable stand-in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)


def environment_with(binaries: pathlib.Path, **variables) -> dict[str, str]:
    """Returns the environment with stand-ins first on PATH."""
    return os.environ | {'PATH': f'{binaries}:{os.environ["PATH"]}'} | {name: str(v) for name, v in variables.items()}


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """Checks that the answer is one line, which holds the words, and exit status 2."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith('error: ') and result.stderr.count('\n') == 1, result.stderr
    for word in words:
        assert word in result.stderr


TPU = ['--name=trial', '--zone=us-east5-b', '--type=v6e-16']
PROGRAM = ['--', '--config=configs/mine.py']

# The state of the TPU is in $CALLS.state; without that file there is none. $CALLS.offline: gcloud is not signed in.
GCLOUD = """#!/bin/bash
echo "$*" >> "$CALLS"
if [ -e "$CALLS.offline" ]; then echo "ERROR: (gcloud) You do not currently have an active account." >&2; exit 1; fi
case "$*" in
  *describe*) cat "$CALLS.state" 2>/dev/null || exit 1 ;;
  *tpu-vm\\ list*) echo "$NODES" ;;
  *queued-resources\\ list*) [ ! -e "$CALLS.state" ] || echo projects/p/locations/z/queuedResources/trial ;;
  *queued-resources\\ create*) [ -z "$NO_QUOTA" ] || exit 1; echo ACTIVE > "$CALLS.state" ;;
  *queued-resources\\ delete*) [ -z "$UNDELETABLE" ] || exit 1; rm -f "$CALLS.state" ;;
  *'if [ -d run ]'*)
    [ -z "$UNREACHABLE" ] || exit 1
    if [ -e "$CALLS.run" ]; then echo there; else echo none; fi ;;
  *worker=0*trial:run\\ *) mkdir -p "${@: -1}"; echo fetched > "${@: -1}/history.csv" ;;
  *worker=0*runs/trial\\ trial:run) touch "$CALLS.run" ;;
  *simclr_cifar.main*)
    case $END in
      taken) [ -e "$CALLS.again" ] || { touch "$CALLS.again"; echo SUSPENDED > "$CALLS.state"; exit 1; } ;;
      deleted) rm "$CALLS.state"; exit 1 ;;
      offline) touch "$CALLS.offline"; exit 255 ;;
      hanging) touch "$CALLS.started"; exec sleep.real 60 ;;
      refused) exit 2 ;;
    esac
    touch "$CALLS.run"
    exit "${PROGRAM_STATUS:-0}" ;;
esac
"""


class TpuScript:
    """Runs launch/tpu_vm.sh in a checkout, with stand-ins and a bash like 3.2.

    Attributes:
      folder: the checkout.
      calls, state, run, offline: files of the stand-in for gcloud; see GCLOUD.
    """

    def __init__(self, tmp_path: pathlib.Path):
        self.folder, self._binaries = tmp_path / 'checkout', tmp_path / 'bin'
        shutil.copytree(ROOT / 'launch', self.folder / 'launch')
        shutil.copy(ROOT / '.gitignore', self.folder)
        for name in ('simclr_cifar/main.py', 'configs/mine.py', 'requirements-tpu.txt'):
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).touch()
        git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b']
        for arguments in (['init', '-q'], ['add', '.'], ['commit', '-q', '-m', 'first']):
            subprocess.run([*git, *arguments], cwd=self.folder, check=True)
        write_program(self._binaries / 'gcloud', GCLOUD)
        write_program(self._binaries / 'sleep', '#!/bin/bash\n')
        (self._binaries / 'sleep.real').symlink_to(shutil.which('sleep'))
        self._old_bash = tmp_path / 'old_bash'
        self._old_bash.write_text(OLD_BASH)
        self.calls = tmp_path / 'calls'
        self.state, self.run, self.offline = (tmp_path / f'calls.{name}' for name in ('state', 'run', 'offline'))

    def start(self, *flags: str, cwd: pathlib.Path | None = None, **variables) -> subprocess.Popen:
        self.calls.write_text('')
        switches = dict.fromkeys(('NODES', 'END', 'NO_QUOTA', 'UNDELETABLE', 'UNREACHABLE'), '')
        return subprocess.Popen(
            [BASH, self.folder / 'launch' / 'tpu_vm.sh', *flags],
            cwd=cwd or self.folder,
            env=environment_with(
                self._binaries, **switches | {'CALLS': self.calls, 'BASH_ENV': self._old_bash} | variables
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, process: subprocess.Popen, timeout: float = 60) -> tuple[subprocess.CompletedProcess, list[str]]:
        """Returns the result and the calls of gcloud that are not mere questions."""
        try:
            output, errors = process.communicate(timeout=timeout)
        finally:
            process.kill()
        result = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
        calls = self.calls.read_text().splitlines()
        return result, [call for call in calls if ' describe ' not in call and ' list ' not in call]

    def __call__(self, *flags: str, **options) -> tuple[subprocess.CompletedProcess, list[str]]:
        return self.end(self.start(*flags, **options))

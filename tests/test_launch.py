"""The launch scripts of this machine, with an environment and a python that only note what they are asked."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from launching import BASH, ROOT, write_program

SCRIPTS = ['local.sh', 'test.sh', 'search.sh']

# Answers the question whether the environment is sound, and notes all else.
PYTHON = """#!/bin/bash
case "$*" in *find_spec*) exit ${UNSOUND:-0} ;; esac
echo "$*" >> "$CALLS"
echo "$PYTHONPATH" > "$CALLS.path"
case "$*" in *--mode=prepare*) echo "no data"; exit ${PREPARED:-0} ;; esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout with an environment that launch/ made."""
    folder = tmp_path / 'checkout'
    shutil.copytree(ROOT / 'launch', folder / 'launch')
    for path in ROOT.glob('requirements*.txt'):
        shutil.copy(path, folder)
    write_program(folder / '.venv' / 'bin' / 'python', PYTHON)
    (folder / '.venv' / '.made').touch()
    return folder


@pytest.fixture
def elsewhere(tmp_path):
    """The caller's folder."""
    folder = tmp_path / 'else where'
    folder.mkdir()
    return folder


def launch(checkout, script, *flags, cwd='/', **environment):
    calls = checkout / 'calls'
    calls.unlink(missing_ok=True)
    environment = os.environ | {'CALLS': str(calls)} | environment
    result = subprocess.run(
        [BASH, checkout / 'launch' / script, *flags], cwd=cwd, env=environment, capture_output=True, text=True
    )
    return result, calls.read_text().splitlines() if calls.exists() else []


def stand_in_for_venv(tmp_path):
    """Returns the path of an interpreter whose `-m venv FOLDER` makes an environment of the stand-in."""
    maker = tmp_path / 'maker'
    write_program(tmp_path / 'stand-in', PYTHON)
    write_program(
        maker,
        f'#!/bin/bash\ncase "$*" in "-m venv "*) mkdir -p "$3/bin"; cp "{tmp_path}/stand-in" "$3/bin/python" ;; esac\n',
    )
    return maker


def test_requirements_are_installed_once_and_again_when_they_change(checkout):
    _, calls = launch(checkout, 'test.sh', '-k', 'name')
    installed = [call for call in calls if 'pip install' in call]
    assert [call.split()[-1] for call in installed] == [
        f'{checkout}/requirements.txt',
        f'{checkout}/requirements-test.txt',
    ]
    assert all(call.startswith('-I ') for call in installed)  # What PYTHONPATH holds is not installed.
    _, calls = launch(checkout, 'test.sh')
    assert not [call for call in calls if 'pip install' in call]
    with (checkout / 'requirements-test.txt').open('a') as file:
        file.write('# changed\n')
    _, calls = launch(checkout, 'test.sh')
    installed = [call for call in calls if 'pip install' in call]
    assert [call.split()[-1] for call in installed] == [f'{checkout}/requirements-test.txt']


def test_the_tests_run_from_any_folder(checkout, elsewhere):
    launch(checkout, 'test.sh')
    flags = f'-P -m pytest --config-file={checkout}/pyproject.toml --rootdir={checkout} --numprocesses=2'
    _, calls = launch(checkout, 'test.sh', '-k', 'name', cwd=elsewhere)
    assert calls == [f'{flags} {checkout}/tests -k name']
    (elsewhere / 'test_x.py').touch()
    _, calls = launch(checkout, 'test.sh', 'test_x.py::test_y', cwd=elsewhere)
    assert calls == [f'{flags} test_x.py::test_y']
    _, calls = launch(checkout, 'test.sh', '-k', 'test_x.py', cwd=elsewhere)
    assert calls == [f'{flags} {checkout}/tests -k test_x.py']


def test_the_flags_reach_the_main_program(checkout):
    launch(checkout, 'test.sh')
    result, calls = launch(checkout, 'local.sh', '--config.num_epochs=3', '--classes=cat,dog')
    main = '-P -m simclr_cifar.main'
    flags = f'{main} --config={checkout}/configs/c10.py --config.num_epochs=3 --classes=cat,dog'
    assert (result.returncode, calls) == (0, [f'{flags} --mode=prepare', flags])
    for mode in (['--mode=study'], ['--mode', 'study'], ['-mode=study']):
        _, calls = launch(checkout, 'local.sh', *mode)
        assert calls[-1] == f'{main} --config={checkout}/configs/study.py {" ".join(mode)}'
    _, calls = launch(checkout, 'local.sh', '--mode=doctor')
    assert calls == [f'{main} --config={checkout}/configs/c10.py --mode=doctor']
    _, calls = launch(checkout, 'local.sh', '--mode=eval', '--workdir=runs/x')
    assert calls == [f'{main} --mode=eval --workdir=runs/x']
    _, calls = launch(checkout, 'local.sh', '--help')
    assert calls == [f'{main} --help']


def test_paths_are_the_callers(checkout, elsewhere):
    launch(checkout, 'test.sh')
    write_program(checkout / '.venv' / 'bin' / 'python', PYTHON + 'pwd > "$CALLS.folder"\n')
    for config in (['--config=mine.py'], ['--config', 'mine.py']):
        _, calls = launch(checkout, 'local.sh', *config, '--workdir=out', cwd=elsewhere)
        assert calls[-1] == f'-P -m simclr_cifar.main {" ".join(config)} --workdir=out'
        assert (checkout / 'calls.folder').read_text() == f'{elsewhere}\n'
    assert (checkout / 'calls.path').read_text().split(':')[0].strip() == str(checkout)


def test_the_package_of_the_checkout_runs_and_no_file_of_the_callers_folder(checkout, elsewhere):
    launch(checkout, 'test.sh')
    for folder, text in ((checkout, 'right'), (elsewhere, 'wrong')):
        (folder / 'simclr_cifar').mkdir()
        (folder / 'simclr_cifar' / '__init__.py').touch()
        (folder / 'simclr_cifar' / 'main.py').write_text(f'import random, os; print("{text}", os.getcwd())')
    (elsewhere / 'random.py').write_text('raise SystemExit("the caller\'s random.py")')
    write_program(checkout / '.venv' / 'bin' / 'python', f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    shutil.rmtree(checkout / '.venv' / 'lib', ignore_errors=True)
    environment = launch_environment(checkout)
    result = subprocess.run(
        [BASH, '-c', environment], cwd=elsewhere, capture_output=True, text=True, env=os.environ | {'CDPATH': '/tmp'}
    )
    assert (result.stdout, result.returncode) == (f'right {elsewhere}\n', 0), result.stderr


def launch_environment(checkout):
    # The environment's own question is left out: the interpreter is this test's.
    return f'source "{checkout}/launch/environment.sh"; is_sound() {{ :; }}; ' + (
        'enter_environment; "$python" -P -m simclr_cifar.main'
    )


@pytest.mark.parametrize('script', SCRIPTS)
def test_an_environment_that_the_scripts_did_not_make_stays_as_it_is(checkout, script):
    (checkout / '.venv' / '.made').unlink()
    (checkout / '.venv' / 'mine').write_text('mine')
    result, calls = launch(checkout, script, '--help')
    assert (result.returncode, calls) == (2, [])
    assert result.stderr.startswith(f'error: {checkout}/.venv: ') and result.stderr.count('\n') == 1
    assert 'move it away' in result.stderr
    assert (checkout / '.venv' / 'mine').read_text() == 'mine'


def test_a_file_or_a_dangling_link_named_venv_stays_too(checkout, tmp_path):
    shutil.rmtree(checkout / '.venv')
    (checkout / '.venv').symlink_to(tmp_path / 'unmounted')
    result, _ = launch(checkout, 'local.sh', '--help', PYTHON=str(stand_in_for_venv(tmp_path)))
    assert (result.returncode, result.stderr[:6]) == (2, 'error:')
    assert (checkout / '.venv').is_symlink()


def test_a_broken_environment_of_the_scripts_is_made_again(checkout, tmp_path):
    launch(checkout, 'local.sh', '--help')
    result, calls = launch(checkout, 'local.sh', '--help', UNSOUND='1', PYTHON=str(stand_in_for_venv(tmp_path)))
    assert result.returncode == 0, result.stderr
    assert [call for call in calls if 'pip install' in call]  # Nothing is installed in the new one.
    assert (checkout / '.venv' / '.made').read_text() == ''


def test_a_broken_environment_stays_while_there_is_no_python_for_a_new_one(checkout):
    result, calls = launch(checkout, 'local.sh', UNSOUND='1', PYTHON='/nowhere/python')
    assert (result.returncode, calls) == (2, [])
    assert result.stderr.startswith('error: PYTHON=/nowhere/python: ') and result.stderr.count('\n') == 1
    assert (checkout / '.venv' / 'bin' / 'python').exists()


def test_an_environment_that_was_interrupted_is_made_again_unless_another_process_makes_it(checkout, tmp_path):
    maker = str(stand_in_for_venv(tmp_path))
    (checkout / '.venv' / '.made').write_text(f'{os.getpid()} {os.uname().nodename}\n')
    result, _ = launch(checkout, 'local.sh', '--help', PYTHON=maker)
    assert (result.returncode, result.stderr.count('\n')) == (2, 1)
    assert f'process {os.getpid()}' in result.stderr
    ended = subprocess.Popen(['true'])
    ended.wait()
    (checkout / '.venv' / '.made').write_text(f'{ended.pid} {os.uname().nodename}\n')
    result, _ = launch(checkout, 'local.sh', '--help', PYTHON=maker)
    assert result.returncode == 0, result.stderr
    assert (checkout / '.venv' / '.made').read_text() == ''


def test_a_real_environment_is_asked_itself_also_after_the_checkout_moved(tmp_path):
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'made'], check=True)
    (tmp_path / 'made').rename(tmp_path / 'moved')
    packages = next((tmp_path / 'moved' / 'lib').glob('python*')) / 'site-packages'
    (packages / 'pip.py').touch()

    def is_sound(folder, **environment):
        script = f'source "{ROOT}/launch/environment.sh"; is_sound "{folder}"'
        return not subprocess.run([BASH, '-c', script], env=os.environ | environment, check=False).returncode

    assert is_sound(tmp_path / 'moved')  # Its Python is called by its path, so it is whole where it is now.
    assert is_sound(tmp_path / 'moved', PYTHONHOME='/nowhere')  # That another variable breaks is not broken.
    (tmp_path / 'moved' / 'pyvenv.cfg').unlink()  # Its Python installs into the system's.
    assert not is_sound(tmp_path / 'moved')
    shutil.rmtree(tmp_path / 'moved' / 'bin')
    assert not is_sound(tmp_path / 'moved')


def test_only_data_that_cannot_be_had_turns_to_the_digits(checkout):
    launch(checkout, 'test.sh')
    result, calls = launch(checkout, 'local.sh', PREPARED='3')
    assert result.stdout == 'Training on the embedded digits instead of CIFAR-10: no data\n'
    assert calls[-1] == f'-P -m simclr_cifar.main --config={checkout}/configs/c10.py --config.dataset=digits'
    result, calls = launch(checkout, 'local.sh', PREPARED='2')
    assert (result.returncode, len(calls)) == (2, 1)
    for flag in ('--data_dir=/nowhere', '--config.dataset=cifar100'):  # Nobody's data are replaced by others.
        _, calls = launch(checkout, 'local.sh', flag, PREPARED='3')
        assert calls == [f'-P -m simclr_cifar.main --config={checkout}/configs/c10.py {flag}']


def test_a_folder_is_indexed_and_served(checkout, elsewhere):
    pictures = elsewhere / 'my pictures'
    pictures.mkdir()
    flags = ['my pictures', '--port=8001']
    result, calls = launch(checkout, 'search.sh', *flags, cwd=elsewhere, CHECKPOINT='runs/mine')
    assert result.returncode == 0, result.stderr
    build, serve = calls[-2:]
    search = '-P -m simclr_cifar.search'
    assert build.startswith(f'{search} build --checkpoint={elsewhere}/runs/mine --images={pictures} --index=')
    index = build.rpartition('--index=')[2]
    assert index.startswith(f'{checkout}/indices/my-pictures-')
    assert serve == f'{search} serve --index={index} --port=8001'
    _, calls = launch(checkout, 'search.sh', str(pictures))
    assert calls[-1].startswith(f'{search} serve --index={checkout}/indices/my-pictures-')
    assert index not in calls[-1]  # Of another encoder.
    assert calls == launch(checkout, 'search.sh', '.', cwd=pictures)[1]
    _, calls = launch(checkout, 'search.sh', '--no_browser')
    unpack, build, serve = calls[-3:]
    assert unpack == f'{search} unpack --to={checkout}/indices/pictures'
    weights, pictures = f'{checkout}/weights/fast', f'{checkout}/indices/pictures'
    assert build.startswith(f'{search} build --checkpoint={weights} --images={pictures} --index=')
    assert serve.endswith(' --no_browser')


@pytest.mark.parametrize('path', sorted((ROOT / 'launch').glob('*.sh')), ids=lambda path: path.name)
def test_no_script_asks_for_more_than_bash_3_2(path):
    newer = r'BASHPID|\bmapfile\b|\breadarray\b|\bcoproc\b|(declare|local) -[Agn]|\$\{\w+(,,|\^\^)|wait -n|\|&|&>>'
    assert not re.findall(newer, path.read_text())
    assert not re.findall(
        r'realpath|readlink|\btimeout\b|date --|\bpkill\b|sed -i', path.read_text().replace('macOS has no realpath', '')
    )  # macOS lacks them, or has others.

"""What a process need not do at its start: import JAX to say --help, compile what an earlier one compiled."""

import stat
import subprocess
import sys

from test_main import DIGITS, ROOT, run


def test_help_needs_no_jax():
    code = (
        'import runpy, sys\n'
        'sys.argv = ["main", "--help"]\n'
        'try:\n    runpy.run_module("simclr_cifar.main", run_name="__main__")\n'
        'except SystemExit:\n    pass\n'
        'assert "jax" not in sys.modules\n'
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert '--workdir' in result.stdout


def names(folder):
    return sorted(path.name for path in folder.rglob('*-cache'))


def test_a_second_run_compiles_nothing_that_the_first_did(tmp_path):
    cache = tmp_path / 'cache'
    for name in ('first', 'second'):
        result = run(*DIGITS, f'--cache_dir={cache}', f'--workdir={tmp_path / name}')
        assert result.returncode == 0, result.stderr
        if name == 'first':
            kept = names(cache / 'compiled')
    assert any('side_by_side' in name for name in kept)
    assert names(cache / 'compiled') == kept
    # What is kept there is run: nobody else may write it.
    assert stat.S_IMODE((cache / 'compiled').stat().st_mode) == 0o700
    histories = [(tmp_path / name / 'history.csv').read_text().splitlines() for name in ('first', 'second')]
    first, second = ([row.split(',')[:5] for row in rows] for rows in histories)
    assert first == second


def test_the_environment_says_where_compiled_programs_are_kept(tmp_path):
    cache, elsewhere = tmp_path / 'cache', tmp_path / 'elsewhere'
    environment = {'JAX_COMPILATION_CACHE_DIR': str(elsewhere), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    result = run(*DIGITS, f'--cache_dir={cache}', f'--workdir={tmp_path / "run"}', environment=environment)
    assert result.returncode == 0, result.stderr
    assert names(elsewhere) and not (cache / 'compiled').exists()

"""The notebooks run from the repository's root, cell by cell, and leave nothing there."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / 'examples').glob('*.ipynb'))


def test_there_are_some():
    assert NOTEBOOKS


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, tmp_path):
    cells = json.loads(notebook.read_text())['cells']
    code = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
    environment = os.environ | {'MPLBACKEND': 'agg', 'TMPDIR': str(tmp_path)}
    before = subprocess.run(['git', 'status', '--porcelain'], cwd=ROOT, capture_output=True, text=True).stdout
    ran = subprocess.run(
        [sys.executable, '-c', '\n'.join(code)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert '600 pictures' in ran.stdout
    assert 'copy.jpg' in ran.stdout
    assert '[]\n' in ran.stdout
    assert subprocess.run(['git', 'status', '--porcelain'], cwd=ROOT, capture_output=True, text=True).stdout == before

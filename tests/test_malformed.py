"""Generated bad input: whatever is typed gets an answer of one line, and leaves nothing."""

import json
import os
import subprocess
import sys
import textwrap

import ml_collections
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import ROOT

from simclr_cifar import beginning, data, stored
from simclr_cifar import config as config_lib

# The examples are the same in every run.
BOUNDED = settings(
    max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
FIELDS = sorted(config_lib.study_defaults())
NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')

# Forks the program, imported once, for every line of flags: a new interpreter would take a second each.
SERVER = """
    import json, os, resource, sys, traceback
    from absl import app
    from simclr_cifar import data, main
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
    data.load('digits', 'test')  # What it imports too.
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(write, 1), os.dup2(write, 2)
            os.close(read), os.close(write)
            sys.argv = ['main', *json.loads(line)]
            status = 1
            try:
                app.run(main.main, flags_parser=main._parse_flags)
            except SystemExit as end:
                status = end.code
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)  # Taking JAX apart in good order takes longer than the rest.
        os.close(write)
        with open(read, errors='replace') as output:
            told = output.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, told]), flush=True)
"""

numbers = st.one_of(st.integers(), st.integers(-3, 12), st.floats(), st.sampled_from([2**31 - 1, 2**63, 10**400]))
texts = st.text(st.characters(exclude_characters='\0', exclude_categories=['Cs']), max_size=20)
literals = st.recursive(
    st.one_of(numbers, texts, st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple)),
    max_leaves=6,
)
class_lists = st.lists(st.one_of(st.sampled_from(NAMES), texts), max_size=12).map(','.join)
flags = st.one_of(
    st.builds('--config.{}={}'.format, st.sampled_from(FIELDS), st.one_of(literals.map(repr), texts)),
    st.builds('--config.{}={}'.format, texts, texts),
    st.builds('--classes={}'.format, class_lists),
    st.builds('--num_classes={}'.format, st.one_of(numbers, texts)),
    st.builds(
        '--{}={}'.format, st.sampled_from(['data_dir', 'checkpoint', 'process_id', 'peer_timeout', 'mode']), texts
    ),
    texts,
)


@pytest.fixture(scope='module')
def answer(tmp_path_factory):
    """[flags] -> (exit status, what was printed), of the program in a folder of its own."""
    folder = tmp_path_factory.mktemp('here')
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore', 'JAX_PLATFORMS': 'cpu'}
    environment |= {'HOME': str(folder / 'home'), 'XDG_CACHE_HOME': str(folder / 'cache')}
    with subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(SERVER)],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:

        def answer(flags):
            print(json.dumps(flags), file=server.stdin, flush=True)
            status, told = json.loads(server.stdout.readline())
            left = {path.name for path in folder.iterdir()} - {'home', 'cache'}
            return status, told, left

        yield answer


@BOUNDED
@given(st.lists(flags, min_size=1, max_size=4))
def test_any_flags_get_one_line(answer, given):
    status, told, left = answer([f'--config={ROOT}/configs/smoke.py', '--mode=prepare', *given])
    assert status in (0, 2), told
    assert len(told.strip().splitlines()) == 1, told
    assert told.startswith('error: ') == (status == 2), told
    assert not left


@BOUNDED
@given(st.dictionaries(st.one_of(st.sampled_from(FIELDS), texts), literals, min_size=1, max_size=4))
def test_any_fields_are_refused_or_trainable(given):
    fields = stored.to_json(config_lib.defaults()) | {'dataset': 'digits'} | given
    try:
        config = stored.from_json(fields)
        splits = data.load_splits(config)
        beginning.require_trainable(config, splits['train'])
    except config_lib.InputError as error:
        assert str(error).strip()
    else:
        assert isinstance(config, ml_collections.ConfigDict)

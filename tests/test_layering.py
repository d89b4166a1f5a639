"""The house: a module imports only from levels below its own, and some libraries have one room only."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / 'simclr_cifar'

LEVELS = {
    0: ['config', 'file_systems', 'pieces', 'interruption', 'streams', 'cache', 'selection'],
    1: [
        *(
            'files',
            'commands',
            'compiled',
            'onnx_graph',
            'decoding',
            'importing',
            'program_folders',
            'parallel',
            'processes',
            'sampling',
            'augment',
            'convolutions',
            'objectives',
            'optimizers',
        ),
        *('neighbours', 'representation'),
    ],
    2: ['shares', 'sources', 'folders', 'layers', 'metrics', 'duplicates', 'pages', 'figures', 'overfitting'],
    3: ['data', 'encoders', 'stored'],
    4: ['models', 'pictures', 'views'],
    5: ['step'],
    6: ['beginning', 'checkpoint', 'evaluate', 'feed', 'log', 'report'],
    7: ['train', 'trained', 'findings'],
    8: ['study_report', 'doctor', 'reevaluate', 'export'],
    9: ['study'],
    10: ['main'],
    # Above all of them, so that none imports the search.
    11: ['search.encoder', 'search.nearest'],
    12: ['search.pictures', 'search.approximate'],
    13: ['search.store'],
    14: ['search.making'],
    15: ['search.index'],
    16: ['search.server', 'search.gallery', 'search.duplicates'],
    17: ['search.__main__', 'search'],
}
LEVEL = {name: level for level, names in LEVELS.items() for name in names}
PATHS = {
    '.'.join(path.relative_to(PACKAGE).with_suffix('').parts).removesuffix('.__init__'): path
    for path in PACKAGE.rglob('*.py')
    if path != PACKAGE / '__init__.py'
}
MODULES = sorted(PATHS)

# Library -> the only modules that may import it.
ROOMS = {
    'tensorflow_datasets': {'sources'},
    'orbax': {'checkpoint'},
    'matplotlib': {'figures'},
    'absl': {'main'},
    'tensorboardX': {'log'},
    'jinja2': {'pages'},
    'onnx': {'onnx_graph'},
    'argparse': {'commands'},
    'faiss': {'search.approximate'},
    'starlette': {'search.server'},
    'uvicorn': {'search.server'},
}


def imports_of(source):
    """Returns (modules of this package, libraries) that the source imports, anywhere in it."""
    own, libraries = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'imports are absolute'
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split('.')
            if parts[0] == 'simclr_cifar':
                own.add(next(name for name in ('.'.join(parts[1:3]), parts[1]) if name in PATHS))
            else:
                libraries.add(parts[0])
    return own, libraries


def test_every_module_has_a_level():
    assert sorted(LEVEL) == MODULES


@pytest.mark.parametrize('module', MODULES)
def test_a_module_imports_only_from_levels_below(module):
    own, libraries = imports_of(PATHS[module].read_text())
    assert {name for name in own if LEVEL[name] >= LEVEL[module]} == set()
    assert {library for library in libraries if module not in ROOMS.get(library, {module})} == set()


def test_imports_are_seen():
    source = 'def f():\n    from simclr_cifar import train\n    import simclr_cifar.step as s\n    import jax.numpy'
    assert imports_of(source) == ({'train', 'step'}, {'jax'})


@pytest.mark.parametrize('module', ['report', 'study_report', 'files', 'config'])
def test_what_reads_files_only_needs_no_jax(module):
    reached, waiting = set(), {module}
    while waiting:
        name = waiting.pop()
        own, libraries = imports_of(PATHS[name].read_text())
        reached |= libraries
        waiting |= own
    assert not reached & {'jax', 'flax', 'optax'}

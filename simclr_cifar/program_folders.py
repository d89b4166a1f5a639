"""Folders that programs write among a person's images, this one's runs first: they are known by what is in them."""

import json
import os
import pathlib
from collections.abc import Collection

# Folders that operating systems and other programs leave behind, in lower case.
_LEFT_BEHIND = (
    *('__macosx', '$recycle.bin', 'recycler', 'system volume information', 'lost+found', '@eadir', '#recycle'),
    '__pycache__',
)
_INDEX_KIND = 'index of simclr_cifar.search'  # The search says so in an index's manifest.json.
_LARGEST_JSON = 2**24  # bytes, of a file that says what its folder is
_NO_IMAGES = ('.csv', '.html', '.json', '.log', '.md', '.py', '.sh', '.txt', '.yaml', '.yml')  # suffixes


def kind(folder: pathlib.Path, names: Collection[str]) -> str:
    """Returns what a folder is, in words, if it is no part of a dataset but written by a program; else ''.

    Args:
      folder: any.
      names: of all that is in it.

    Raises:
      OSError: a folder in it cannot be read.
    """
    if folder.name.lower() in _LEFT_BEHIND:
        return 'a folder that another program left behind'
    if what := _written_here(folder, names):
        return what
    # A folder of runs holds nothing else: a class's folder that somebody trained in has images beside them.
    found = set()
    for inside in (folder / name for name in names if not name.startswith('.')):
        if inside.name.lower().endswith(_NO_IMAGES):
            continue
        if not inside.is_dir() or inside.is_symlink():
            return ''
        within = os.listdir(inside)
        what = _written_here(inside, within)
        if what:
            found.add(what)
        elif inside.name != 'compiled' and any(not name.startswith('.') for name in within):
            return ''
    return f'a folder of what this program writes ({", ".join(sorted(found))})' if found else ''


def _written_here(folder: pathlib.Path, names: Collection[str]) -> str:
    if 'config.json' in names:
        about = _read_json(folder / 'config.json')
        if 'fingerprint' in about and isinstance(about.get('config'), dict):
            return 'a study' if 'subsets' in about['config'] else 'a run'
    if 'history.csv' in names and 'checkpoints' in names:
        return 'a run'
    if 'manifest.json' in names and _read_json(folder / 'manifest.json').get('kind') == _INDEX_KIND:
        return 'an index'
    if '.next.sqlite' in names:
        return 'an index'  # It is not finished.
    return 'decoded images' if {'about.json', 'images.raw', 'labels.npy'} <= set(names) else ''


def _read_json(path: pathlib.Path) -> dict:
    """Returns what a JSON file holds; {}: nothing that tells what its folder is, in whatever way."""
    try:
        about = json.loads(path.read_bytes()) if path.is_file() and path.stat().st_size <= _LARGEST_JSON else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}

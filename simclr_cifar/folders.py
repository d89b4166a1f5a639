"""Folders of images, by class or not, in whatever state: what is no image is left out and told of."""

import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator

from simclr_cifar import cache, decoding, program_folders
from simclr_cifar.config import FOLDER, IMAGES, InputError

_TEST = ('test', 'validation', 'val')
_AWAY = 'a link that leads out of the folder'
_EMPTY = 'a folder without files'
_NO_CLASS = 'in the sub-folder of no class'


def absolute(dataset: str) -> str:
    """Returns a dataset's name that means the same from any directory: of a folder, with its absolute path.

    Args:
      dataset: 'folder:PATH', 'images:PATH', or any other name, which is returned as it is. '~' is expanded; links are
        kept, because a folder is called as the link to it.
    """
    kind, _, path = dataset.partition(':')
    if not dataset.startswith((FOLDER, IMAGES)) or not path:
        return dataset
    expanded = os.path.expanduser(path)
    whole = os.path.abspath(expanded)
    if os.path.realpath(whole) != os.path.realpath(expanded):  # '..' leads from where a link points to.
        whole = os.path.realpath(expanded)
    return f'{kind}:{whole}'


def absolute_of_run(dataset: str, run: str | os.PathLike) -> str:
    """Returns `absolute` of a name that a run stored, perhaps with a path from the directory where it was started.

    Args:
      dataset: the name in the run's config.json.
      run: the run's folder. A run in a folder named runs was started in the folder above that one: a path from there is
        taken if it exists, else one from the current directory.
    """
    kind, _, path = dataset.partition(':')
    if not dataset.startswith((FOLDER, IMAGES)) or not path or os.path.isabs(os.path.expanduser(path)):
        return absolute(dataset)
    for parent in pathlib.Path(os.path.abspath(run)).parents:
        if parent.name == 'runs' and (parent.parent / path).is_dir():
            return absolute(f'{kind}:{parent.parent / path}')
    return absolute(dataset)


def load(name: str, split: str, cache_dir: str | None, image_size: int) -> cache.Arrays | None:
    """Returns the images in a folder's sub-folders, each of which is a class, through the cache; None: no test split.

    The sub-folders are those of train/ and test/ (or validation/, or val/), where there is a train/: else of the folder
    itself, and there is no test split. A class's own sub-folders belong to it. Where there are none, or none are asked
    for, all images are of one class, named after the folder. Hidden files are no part of a dataset; files that are no
    images or in no class, and links that lead out of the folder, are left out. So are folders without files, those that
    other programs leave behind, and those that this program writes: runs, studies, indexes and caches.

    Args:
      name: 'folder:PATH', or 'images:PATH', which asks for no classes.
      split: 'train' or 'test'.
      cache_dir: as `data.load`.
      image_size: as `decoding.decode`.

    Raises:
      InputError: there is no such folder, it holds no images, these differ in size, or but one split has classes.
    """
    kind, _, path = name.partition(':')
    flag, root = f'--config.dataset={name}', pathlib.Path(os.path.expanduser(path))
    if not path.isprintable():
        raise InputError(f'--config.dataset={kind}:{path!a}: is a name that cannot be printed; give the folder another')
    try:
        if not path or not root.is_dir():
            raise InputError(
                f'{flag}: there is no such folder; give one of images, or of a sub-folder of them for each class'
            )
        parts, empty = {'train': root, 'test': None}, []
        if (root / 'train').is_dir():
            tests = [root / name for name in _TEST if (root / name).is_dir()]
            with_files = [part for part in tests if _has_files(part, root)]
            parts = {'train': root / 'train', 'test': with_files[0] if with_files else None}
            empty = [f'{part.name!a}: {_EMPTY}' for part in tests if part not in with_files]
        listed = {part: _sub_folders(part, root) for part in parts.values() if part and name.startswith(FOLDER)}
        sub_folders = sorted({entry.name for of_part, _ in listed.values() for entry in of_part})
        classes = sub_folders or [os.path.basename(os.path.abspath(root)) or 'images']
        for each in classes:
            if not each.isprintable():
                raise InputError(f'{flag}: {each!a} is a name that cannot be printed; give the folder another')
        folder = parts[split]
        if folder is None:
            return None
        of_part, others = listed.get(folder, ([], []))
        if sub_folders and not of_part:
            raise InputError(
                f'{flag}: {folder} has no sub-folders of classes, as the other split has; give it some, or leave all '
                f'classes out with --config.dataset={IMAGES}{path}'
            )
        files, left_out, skipped = _files(root, folder, sub_folders, of_part)
        cache.tell_left_out(list(dict.fromkeys(empty + others + skipped)))
        # Their times, not their bytes: reading those of a large folder would take as long as decoding it.
        digest = hashlib.sha256(f'format 2, {image_size}, {classes}, {root.absolute()}'.encode())
        for inside, label, file in files:
            told = file.stat()
            line = f'{inside}, {label}, {told.st_size}, {told.st_mtime_ns}, {told.st_ctime_ns}\n'
            digest.update(line.encode(errors='surrogateescape'))
        digest.update('\n'.join(left_out).encode())
    except OSError as error:
        raise InputError(f'{flag}: {error.filename} cannot be read ({error.strerror}); see to it') from error
    except RecursionError as error:
        raise InputError(f'{flag}: its folders lie too deep in each other; make them fewer') from error
    key = f'{re.sub("[^a-zA-Z0-9]+", "-", root.absolute().name)[:40]}-{split}-{digest.hexdigest()[:16]}'
    decode = functools.partial(_decode, flag, root, files, classes, left_out, image_size)
    return cache.through(cache_dir, key, decode)


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    return [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith('.')]


def _sub_folders(folder: pathlib.Path, root: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
    """Returns the sub-folders that are classes, and a line about each that is none although no link leads out there."""
    classes, others = [], []
    for entry in _visible(folder):
        if not entry.is_dir() or _leads_out(entry, root):
            continue
        what = program_folders.kind(entry, os.listdir(entry)) or ('' if _has_files(entry, root) else _EMPTY)
        if what:
            others.append(f'{str(entry.relative_to(root))!a}: {what}')
        else:
            classes.append(entry)
    return classes, others


def _has_files(folder: pathlib.Path, root: pathlib.Path) -> bool:
    """Returns whether there is a file that may be an image; links out of the root are none."""
    return any(not problem for _, problem, _ in _walked(folder, root))


def _leads_out(entry: pathlib.Path, root: pathlib.Path) -> bool:
    real, inside = os.path.realpath(entry), os.path.realpath(root)  # Which do not mind a loop of links.
    return os.path.commonpath([real, inside]) != inside


def _files(root, folder, names, of_part) -> tuple[list[tuple[str, int, pathlib.Path]], list[str], list[str]]:
    """Returns (name, label, path) of the files that may be images, sorted, and lines: of files, of folders left out.

    Args:
      root: the dataset's folder.
      folder: the split's.
      names: of the classes, of all splits; where there are none, all files are of the first.
      of_part: the folders of those classes that are in this split.
    """
    files, left_out, skipped = [], [], []
    if names:
        left_out += [
            f'{entry.name!a}: {_AWAY}' for entry in _visible(folder) if entry.is_dir() and _leads_out(entry, root)
        ]
        loose = [entry for entry in _visible(folder) if entry.is_file()]
        left_out += [f'{str(entry.relative_to(root))!a}: {_NO_CLASS}' for entry in loose]
    for where in of_part if names else [folder]:
        label = names.index(where.name) if names else 0
        for path, problem, is_folder in _walked(where, root):
            told = str(path.relative_to(root))
            if problem:
                (skipped if is_folder else left_out).append(f'{told!a}: {problem}')
            else:
                files.append((told, label, path))
    return files, left_out, skipped


def walk(folder: pathlib.Path, root: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
    """Returns the files in a folder and its sub-folders, in the order of their names, and a line about what is none.

    Hidden ones are passed over; links to folders are not followed. Folders in it that other programs leave behind, or
    that this program writes (runs, studies, indexes, caches), are left out, with a line about each.

    Args:
      folder: where to look.
      root: links to files that are not in it are left out, and names are told from it.

    Raises:
      OSError: a folder cannot be read.
    """
    files, left_out = [], []
    for path, problem, _ in _walked(folder, root):
        if problem:
            left_out.append(f'{str(path.relative_to(root))!a}: {problem}')
        else:
            files.append(path)
    return files, left_out


def _walked(folder: pathlib.Path, root: pathlib.Path) -> Iterator[tuple[pathlib.Path, str, bool]]:
    """Yields (path, problem, whether it is a folder that is left out) as of `walk`; '': a file without a problem."""

    def fail(error):
        raise error

    for where, folders, names in os.walk(folder, onerror=fail):
        # The folder to look in was chosen, whatever it is.
        if where != os.fspath(folder) and (what := program_folders.kind(pathlib.Path(where), folders + names)):
            folders.clear()
            yield pathlib.Path(where), what, True
            continue
        folders[:] = sorted(entry for entry in folders if not entry.startswith('.'))
        for entry in sorted(names + [entry for entry in folders if os.path.islink(os.path.join(where, entry))]):
            path = pathlib.Path(where, entry)
            if entry.startswith('.'):
                continue
            if path.is_symlink() and _leads_out(path, root):
                yield path, _AWAY, False
            else:
                yield path, '' if path.is_file() else 'not a file', False


def _decode(flag, root, files, classes, left_out, image_size) -> cache.Decoded:
    left_out = list(left_out)

    def leave_out(name, error):
        left_out.append(f'{name!a}: {error}')

    encoded = (decoding.Encoded(name, functools.partial(path.open, 'rb'), label) for name, label, path in files)

    def pieces():
        number = 0
        for images, labels in decoding.decode_pieces(encoded, image_size, leave_out):
            number += len(labels)
            yield images, labels
        if not number:
            why = f', as {left_out[0]}' if left_out else ''
            no_class = ''
            if any(line.endswith(_NO_CLASS) for line in left_out):
                no_class = f', or take the images as of no class with --config.dataset={IMAGES}{root.absolute()}'
            raise InputError(
                f'{flag}: none of its {len(left_out)} files is an image that can be read{why}; give a folder of '
                f'images, or of a sub-folder of them for each class{no_class}'
            )

    return cache.Decoded(pieces(), tuple(classes), f'Images in {root.absolute().name!a}.', left_out)

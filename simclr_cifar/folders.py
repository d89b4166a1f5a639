"""Folders of images, by class or not, in whatever state: what is no image is left out and told of."""

import functools
import hashlib
import os
import pathlib
import re

from simclr_cifar import cache, decoding
from simclr_cifar.config import FOLDER, IMAGES, InputError

_TEST = ('test', 'validation', 'val')
_AWAY = 'a link that leads out of the folder'


def load(name: str, split: str, cache_dir: str | None, image_size: int) -> cache.Arrays | None:
    """Returns the images in a folder's sub-folders, each of which is a class, through the cache; None: no test split.

    The sub-folders are those of train/ and test/ (or validation/, or val/), where there is a train/: else of the folder
    itself, and there is no test split. A class's own sub-folders belong to it. Where there are none, or none are asked
    for, all images are of one class, named after the folder. Hidden files are no part of a dataset; files that are no
    images or in no class, and links that lead out of the folder, are left out.

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
        parts = {'train': root, 'test': None}
        if (root / 'train').is_dir():
            tests = [root / name for name in _TEST if (root / name).is_dir()]
            parts = {'train': root / 'train', 'test': tests[0] if tests else None}
        found = [entry for part in parts.values() if part and name.startswith(FOLDER) for entry in _sub_folders(part)]
        sub_folders = sorted({entry.name for entry in found if not _leads_out(entry, root)})
        classes = sub_folders or [os.path.basename(os.path.abspath(root)) or 'images']
        for each in classes:
            if not each.isprintable():
                raise InputError(f'{flag}: {each!a} is a name that cannot be printed; give the folder another')
        folder = parts[split]
        if folder is None:
            return None
        if sub_folders and not _sub_folders(folder):
            raise InputError(
                f'{flag}: {folder} has no sub-folders of classes, as the other split has; give it some, or leave all '
                f'classes out with --config.dataset={IMAGES}{path}'
            )
        files, left_out = _files(root, folder, sub_folders)
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


def _sub_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith('.')]


def _leads_out(entry: pathlib.Path, root: pathlib.Path) -> bool:
    real, inside = os.path.realpath(entry), os.path.realpath(root)  # Which do not mind a loop of links.
    return os.path.commonpath([real, inside]) != inside


def _files(root, folder, classes) -> tuple[list[tuple[str, int, pathlib.Path]], list[str]]:
    """Returns (name, label, path) of the files that may be images, sorted, and a line about each that is not.

    Where there are no classes, all files are of the first.
    """
    if not classes:
        paths, left_out = walk(folder, root)
        return [(str(path.relative_to(root)), 0, path) for path in paths], left_out
    files = []
    left_out = [f'{entry.name!a}: {_AWAY}' for entry in _sub_folders(folder) if _leads_out(entry, root)]
    loose = [entry for entry in sorted(folder.iterdir()) if entry.is_file() and not entry.name.startswith('.')]
    left_out += [f'{str(entry.relative_to(root))!a}: in the sub-folder of no class' for entry in loose]
    for label, name in enumerate(classes):
        if not (folder / name).is_dir() or _leads_out(folder / name, root):  # A class of the other split.
            continue
        found, others = walk(folder / name, root)
        files += [(str(path.relative_to(root)), label, path) for path in found]
        left_out += others
    return files, left_out


def walk(folder: pathlib.Path, root: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
    """Returns the files in a folder and its sub-folders, in the order of their names, and a line about what is none.

    Hidden ones are passed over; links to folders are not followed.

    Args:
      folder: where to look.
      root: links to files that are not in it are left out, and names are told from it.

    Raises:
      OSError: a folder cannot be read.
    """
    files, left_out = [], []

    def fail(error):
        raise error

    for where, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(entry for entry in folders if not entry.startswith('.'))
        for entry in sorted(names + [entry for entry in folders if os.path.islink(os.path.join(where, entry))]):
            path = pathlib.Path(where, entry)
            told = str(path.relative_to(root))
            if entry.startswith('.'):
                continue
            if path.is_symlink() and _leads_out(path, root):
                left_out.append(f'{told!a}: {_AWAY}')
            elif not path.is_file():
                left_out.append(f'{told!a}: not a file')
            else:
                files.append(path)
    return files, left_out


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
            raise InputError(
                f'{flag}: none of its {len(left_out)} files is an image that can be read{why}; give a folder of '
                'images, or of a sub-folder of them for each class'
            )

    return cache.Decoded(pieces(), tuple(classes), f'Images in {root.absolute().name!a}.', left_out)

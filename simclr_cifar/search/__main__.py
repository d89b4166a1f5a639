"""Finds pictures that are like a picture.

python -m simclr_cifar.search build --checkpoint=weights/fast --images=PICTURES --index=INDEX
python -m simclr_cifar.search query --index=INDEX --image=PICTURE -k 10
"""

import io
import json
import math
import os
import pathlib
import shutil
import sys
import threading
import time
import webbrowser

import numpy as np
from PIL import Image

from simclr_cifar import commands, compiled
from simclr_cifar.config import DatasetNotFound, InputError
from simclr_cifar.search import approximate, duplicates, gallery, pictures
from simclr_cifar.search.encoder import Encoder, load_encoder
from simclr_cifar.search.index import Index

_MOST_TOLD = 20  # lines about files that are left out


def _build(given) -> int:
    encoder = _encoder(given)
    if encoder is None:
        raise InputError('--checkpoint: give the folder of a run, as weights/fast; or --encoder=FILE.onnx')
    return _told(lambda: Index.build(given.index, encoder, given.images, progress=True, ann=given.ann))


def _add(given) -> int:
    return _told(lambda: Index.open(given.index, _encoder(given)).add(given.images, progress=True))


def _remove(given) -> int:
    return _told(lambda: Index.open(given.index, _encoder(given)).remove(given.images))


def _told(change) -> int:
    since = time.monotonic()
    index = change()
    left_out, new, gone = index.made
    for line in left_out[:_MOST_TOLD]:
        print(_line(f'Left out: {line}'), file=sys.stderr)
    if len(left_out) > _MOST_TOLD:
        print(f'and {len(left_out) - _MOST_TOLD} more', file=sys.stderr)
    classes = len([name for name in index.classes() if name])
    counts = [
        f'{len(index):,} pictures' + (f' of {classes} classes' if classes else ''),
        f'{new:,} new',
        f'{gone:,} gone',
    ]
    counts += [f'{len(left_out):,} files left out'] if left_out else []
    print(_line(f'{index.path}: {", ".join(counts)}, in {time.monotonic() - since:.1f} s'))
    if graph := index.manifest['graph']:
        few = '' if graph['recall'] >= approximate.RECALL else '; an index without --ann finds all of them'
        print(f'Approximate search: finds {100 * graph["recall"]:.1f} % of the 10 nearest{few}')
    return 0


def _query(given) -> int:
    index = Index.open(given.index, _encoder(given))
    threshold = {'auto': index.threshold, 'none': None}.get(given.threshold, given.threshold)
    names, queries = _queries(given.image, index.encoder)
    found, nearness = index.look(index.encoder.embed(queries), given.k, given.class_name)
    if threshold is not None:
        found = [matches if near >= threshold else [] for matches, near in zip(found, nearness, strict=True)]
    if given.html:
        asked = [(name, None if name == '-' else gallery.preview(name)) for name in names]
        gallery.write(given.html, asked, found, nearness, threshold, index.rank)
        print(f'Gallery: {given.html}')
        return 0
    if given.json:
        answers = [
            {'image': name, 'nearness': float(near), 'matches': [match._asdict() for match in matches]}
            for name, matches, near in zip(names, found, nearness, strict=True)
        ]
        print(json.dumps(answers, indent=2))
        return commands.printed()
    for name, matches, near in zip(names, found, nearness, strict=True):
        if len(names) > 1:
            print(_line(name))
        if not matches:
            print(f'no match: it is less like the index ({near:.4f}) than {threshold:.4f}')
        for match in matches:
            print(_line(f'{match.similarity:.4f}  {match.class_name:12}  {match.path}'))
    return commands.printed()


def _line(text: str) -> str:
    """Returns a text with a name in it, which may be of any bytes, as one line."""
    return ''.join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _duplicates(given) -> int:
    groups = duplicates.find(Index.open(given.index), given.similarity)
    if given.json:
        print(json.dumps([[match._asdict() for match in group] for group in groups], indent=2))
        return commands.printed()
    for group in groups:
        for match in group:
            print(_line(f'{match.similarity:.4f}  {match.path}'))
        print()
    pictures_in = sum(map(len, groups))
    print(f'{len(groups):,} groups of copies, {pictures_in:,} pictures, {pictures_in - len(groups):,} more than needed')
    return commands.printed()


def _serve(given) -> int:
    from simclr_cifar.search import server

    def ready(address):
        print(f'Similar pictures: {address} (for this machine alone; Ctrl-C ends it)', flush=True)
        if not given.no_browser:
            # Some browsers stay in the foreground.
            threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()

    server.serve(Index.open(given.index, _encoder(given)), given.port, ready)
    return 0


def _unpack(given) -> int:
    if given.to.is_dir() and any(given.to.iterdir()):
        print(f'{given.to}: is there already')
        return 0
    from simclr_cifar import data

    try:
        dataset = data.load('cifar10', 'test', given.data_dir, given.cache_dir)
    except DatasetNotFound as error:
        print(f'The embedded digits instead of CIFAR-10: {error}')
        dataset = data.load('digits', 'test')
    partial = given.to.with_name(f'.{given.to.name}-{os.getpid()}')
    try:
        for name in dataset.class_names:
            (partial / name).mkdir(parents=True)
        for number, (image, label) in enumerate(zip(dataset.images, dataset.labels, strict=True)):
            Image.fromarray(image).save(partial / dataset.class_names[label] / f'{number:05}.png')
        partial.rename(given.to)
    except OSError as error:
        raise InputError(f'--to={given.to}: cannot be written ({error.strerror}); choose another folder') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f'{given.to}: {len(dataset.labels):,} pictures. {dataset.description}')
    return 0


def _queries(image: str, encoder: Encoder) -> tuple[list[str], np.ndarray]:
    """Returns the names of the pictures asked about, and themselves as the encoder takes them."""
    if image == '-':
        return ['-'], encoder.read(io.BytesIO(sys.stdin.buffer.read()))[None]
    names = [file.path for file in pictures.find([image], '--image')[0]]
    if len(names) == 1:
        return names, encoder.read(names[0])[None]
    read = {}
    for name in names:
        try:
            read[name] = encoder.read(name)
        except InputError as error:
            print(_line(f'Left out: {error}'), file=sys.stderr)
    if not read:
        raise InputError(f'--image={image}: holds no picture; give a picture, or a folder of them')
    return list(read), np.stack(list(read.values()))


def _encoder(given) -> Encoder | None:
    source = given.encoder or given.checkpoint
    return load_encoder(source) if source else None


def _path(text: str) -> pathlib.Path:
    return pathlib.Path(commands.local_path(text))


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _threshold(text: str) -> float | str:
    return text if text in ('auto', 'none') else _number(text)


# As argparse names them.
_number.__name__, _threshold.__name__ = 'number', 'number, auto or none'


def _parser() -> commands.Parser:
    parser = commands.Parser(prog='python -m simclr_cifar.search', description=__doc__)
    cache_dir = 'for decoded images and compiled programs; default: ~/.cache/simclr_cifar'
    local = commands.local_path
    modes = parser.add_subparsers(required=True, metavar='MODE', parser_class=commands.Parser)

    def mode(name: str, function, told: str) -> commands.Parser:
        added = modes.add_parser(name, help=told, description=told)
        added.set_defaults(function=function)
        added.add_argument('--index', required=True, type=local, metavar='DIR', help='the directory of the index')
        encoder = added.add_mutually_exclusive_group()
        encoder.add_argument(
            '--checkpoint',
            type=local,
            metavar='RUN',
            help='the encoder: the folder of a run, as weights/fast',
        )
        encoder.add_argument(
            '--encoder', type=local, metavar='FILE', help='or an .onnx file, with which JAX is not needed'
        )
        added.add_argument('--cache_dir', type=local, help=cache_dir)
        return added

    build = mode('build', _build, "make an index of a folder's pictures, or bring one up to date")
    build.add_argument(
        '--images',
        required=True,
        type=local,
        metavar='FOLDER',
        help='of pictures, by class where these are known',
    )
    build.add_argument(
        '--ann',
        action='store_true',
        help='make a graph for a fast, approximate search; for a million pictures and more',
    )
    for name, function, told in (('add', _add, 'add pictures'), ('remove', _remove, 'take pictures out')):
        changed = mode(name, function, told)
        changed.add_argument('--images', required=True, type=local, nargs='+', metavar='PATH', help='folders and files')
    query = mode('query', _query, 'find the pictures that are most like one')
    query.add_argument('--image', required=True, type=local, help='a file, a folder of them, or - for standard input')
    query.add_argument('-k', type=int, help='how many; default: 10, or as many as there are')
    query.add_argument('--class', dest='class_name', metavar='NAME', help='of the pictures to choose from')
    query.add_argument(
        '--threshold',
        type=_threshold,
        default='auto',
        help="how similar the 10th nearest picture has to be: a number; auto, as those of 95 %% of the index's own "
        'pictures are; none, to see what is nearest whatever it is',
    )
    shown = query.add_mutually_exclusive_group()
    shown.add_argument('--json', action='store_true', help='print JSON')
    shown.add_argument('--html', type=_path, metavar='FILE', help='write a page that shows them')
    copies = mode('duplicates', _duplicates, 'list pictures that are copies of each other')
    copies.add_argument(
        '--similarity',
        type=_number,
        default=duplicates.SIMILARITY,
        help=f'of textures, from which on two are copies; default: {duplicates.SIMILARITY}',
    )
    copies.add_argument('--json', action='store_true', help='print JSON')
    serve = mode('serve', _serve, 'open a page to search with, on this machine alone')
    serve.add_argument('--port', type=int, default=8000, help='default: 8000; 0: any that is free')
    serve.add_argument('--no_browser', action='store_true', help='only print its address')
    unpack = modes.add_parser('unpack', help="write CIFAR-10's test images, or the digits, as files to try it with")
    unpack.set_defaults(function=_unpack)
    unpack.add_argument('--to', required=True, type=_path, metavar='FOLDER', help='which does not exist yet')
    unpack.add_argument(
        '--data_dir',
        type=local,
        help="TFDS's data folder; default: TFDS_DATA_DIR, else TFDS's own default",
    )
    unpack.add_argument('--cache_dir', type=local, help=cache_dir)
    return parser


def main(arguments: list[str]) -> int:
    """Does what the arguments say and returns the exit status."""
    given = _parser().parse_args(arguments)
    compiled.keep(given.cache_dir)
    return given.function(given)


if __name__ == '__main__':
    sys.exit(commands.answered(main, sys.argv[1:]))

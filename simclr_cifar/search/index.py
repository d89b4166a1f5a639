"""An index of pictures, and the pictures in it that are like others."""

import contextlib
import os
import pathlib
import weakref
from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np

from simclr_cifar.config import InputError
from simclr_cifar.search import making, nearest, pictures, store
from simclr_cifar.search.encoder import Encoder, Picture, load_encoder
from simclr_cifar.search.pictures import File

_SHOWN = 10


class Match(NamedTuple):
    """A picture of the index that is like another: how similar, -1 to 1; its file; its class or ''; its row."""

    similarity: float
    path: str
    class_name: str
    row: int


class Index:
    """An index as it was when it was opened; what is changed since by others, or by itself, is another.

    Attributes:
      path: its directory.
      manifest: what its manifest.json holds.
      embeddings: float32 [N, D], memory-mapped.
      threshold: the similarity that all but 5 % of its own pictures have to their 10th nearest; None: there is but one.
      made: after `build`, `add` and `remove`, what became of it.
    """

    def __init__(self, path: pathlib.Path, encoder: Encoder | None, made: making.Made | None = None):
        self.path, self._encoder, self.made = path, encoder, made
        self._state = store.open_state(path)
        self._close_database = weakref.finalize(self, self._state.database.close)
        self.manifest, self.embeddings = self._state.manifest, self._state.embeddings
        if encoder:
            _require_same(path, self.manifest, encoder)
        self._gallery = nearest.prepared(self.embeddings)
        self._rows_of_classes = {}
        self.threshold = self.manifest['threshold']

    @classmethod
    def open(cls, path: str | os.PathLike, encoder: Encoder | None = None) -> Self:
        """Opens an index.

        Args:
          path: its directory.
          encoder: None: the one that it was built with, loaded when it is needed.

        Raises:
          InputError: there is no index, it is damaged, or of another encoder.
        """
        return cls(_expanded(path), encoder)

    @classmethod
    def build(
        cls,
        path: str | os.PathLike,
        encoder: Encoder,
        folder: str | os.PathLike,
        progress: bool = False,
        ann: bool = False,
    ) -> Self:
        """Makes a directory the index of a folder's pictures, as they are now; embeds only those new or changed.

        Args:
          path: the directory, made where it is missing.
          encoder: to embed with.
          folder: with pictures, in sub-folders of their classes where these are known.
          progress: whether a bar is shown on standard error.
          ann: whether neighbours are searched in a graph (see `approximate`), which is worth its while from about a
            million pictures on; manifest['graph'] tells its recall.

        Raises:
          InputError: no picture is in the folder; the directory cannot be written, is held by another process, or holds
            other things, or an index that is damaged or of another encoder.
        """
        path, (wanted, others) = _expanded(path), pictures.find([folder])
        with store.written(path), contextlib.ExitStack() as opened:
            present = None
            if store.manifest_path(path).exists():
                present = store.open_state(path)
                opened.callback(present.database.close)
                _require_same(path, present.manifest, encoder)
            made = making.make(path, encoder, present, wanted, [os.fspath(folder)], progress, ann)
        return cls(path, encoder, made._replace(left_out=others + made.left_out))

    def add(self, sources: Iterable[str | os.PathLike], progress: bool = False) -> Self:
        """Returns the index with the pictures of more folders and files in it; errors as of `build`."""
        found, others = pictures.find(sources)

        def added(there):
            # A class's folder that is given by itself does not tell the class of the pictures in it any more.
            return there | {
                file.path: file._replace(class_name=there.get(file.path, file).class_name) for file in found
            }

        return self._changed(added, others, sources, progress)

    def remove(self, sources: Iterable[str | os.PathLike]) -> Self:
        """Returns the index without the pictures of some folders and files, which need not exist any more.

        Raises:
          InputError: none of them is in it, or none would be left; or as of `build`.
        """
        gone = [os.path.abspath(os.path.expanduser(source)) for source in sources]
        pictures_there = {file.path for file in self.files()}

        def without(there):
            kept = {
                path: file
                for path, file in there.items()
                if not any(path == one or path.startswith(one.rstrip(os.sep) + os.sep) for one in gone)
            }
            flag = f'--images={", ".join(map(ascii, gone))}'
            if len(kept) == len(there):
                raise InputError(f'{flag}: none of it is in the index; give what is')
            if not pictures_there & kept.keys():
                raise InputError(f'{flag}: is all that is in the index; delete the directory instead')
            return kept

        return self._changed(without, [], [], False)

    def _changed(self, change, left_out, sources, progress) -> Self:
        # Perhaps newer than this one.
        with store.written(self.path), type(self)(self.path, self.encoder) as present:
            there = {file.path: file for file in present.files() + present._files_left_out()}
            wanted = sorted(change(there).values())
            before = present.manifest['data']['sources']
            all_sources = before + [os.fspath(source) for source in sources if os.fspath(source) not in before]
            ann = bool(present.manifest['graph'])
            made = making.make(self.path, self.encoder, present._state, wanted, all_sources, progress, ann)
        return type(self)(self.path, self.encoder, made._replace(left_out=left_out + made.left_out))

    @property
    def encoder(self) -> Encoder:
        """The encoder; that of the manifest is loaded where none was given.

        Raises:
          InputError: it is not where it was, or another is there.
        """
        if self._encoder is None:
            encoder = load_encoder(self.manifest['encoder']['source'])
            _require_same(self.path, self.manifest, encoder)
            self._encoder = encoder
        return self._encoder

    def close(self) -> None:
        """Lets go of its files, as it does when nothing refers to it any more; it answers no more."""
        self._close_database()
        self._state = self._gallery = self.embeddings = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def rank(self) -> int:
        """Which of a picture's nearest a threshold is compared with: the 10th, or the last of fewer."""
        return min(making.RANK, len(self))

    def files(self) -> list[File]:
        """Returns the pictures' files, row by row."""
        rows = self._state.database.execute('SELECT path, class, size, mtime_ns FROM pictures ORDER BY row')
        return [File(os.fsdecode(path), *rest) for path, *rest in rows]

    def _files_left_out(self) -> list[File]:
        rows = self._state.database.execute('SELECT path, size, mtime_ns FROM left_out')
        return [File(os.fsdecode(path), '', *rest) for path, *rest in rows]

    def classes(self) -> dict[str, int]:
        """Returns how many pictures there are of each class, by name; of '' those that are in no sub-folder."""
        return dict(self._state.database.execute('SELECT class, count(*) FROM pictures GROUP BY class ORDER BY class'))

    def same_content(self) -> list[list[int]]:
        """Returns the rows of the pictures whose files are the same byte by byte, a list for each such file."""
        grouped = 'SELECT group_concat(row) FROM pictures GROUP BY sha256 HAVING count(*) > 1 ORDER BY min(row)'
        return [sorted(map(int, rows.split(','))) for (rows,) in self._state.database.execute(grouped)]

    def query(
        self, picture: Picture, k: int | None = None, class_name: str | None = None, threshold: float | None = None
    ) -> list[Match]:
        """Returns the k pictures most like one, the most similar first; none where it is like nothing there.

        Args:
          picture: a file, or uint8 [H, W, 3] of the encoder's shape.
          k: from 1 to as many as there are; None: 10, or as many.
          class_name: of the pictures to choose from; None: of any.
          threshold: what the 10th nearest picture, of any class, has to reach; None: what is nearest is returned.

        Raises:
          InputError: the picture cannot be read, there are not k, or there is no such class.
        """
        (matches,) = self.search(self.encoder.embed([picture]), k, class_name, threshold)
        return matches

    def search(
        self,
        embeddings: np.ndarray,
        k: int | None = None,
        class_name: str | None = None,
        threshold: float | None = None,
    ) -> list[list[Match]]:
        """Returns what `query` does, of each of some embeddings, float32 [Q, D]."""
        matches, nearness = self.look(embeddings, k, class_name)
        known = np.ones(len(matches), bool) if threshold is None else nearness >= threshold
        return [of_one if is_known else [] for of_one, is_known in zip(matches, known, strict=True)]

    def look(
        self, embeddings: np.ndarray, k: int | None = None, class_name: str | None = None
    ) -> tuple[list[list[Match]], np.ndarray]:
        """Returns each embedding's k nearest pictures, and what a threshold is compared with, float32 [Q].

        That is how similar its 10th nearest picture of any class is. Arguments and errors as of `search`.
        """
        rows = None if class_name is None else self._rows_of(class_name)
        there = len(self) if rows is None else len(rows)
        k = min(_SHOWN, there) if k is None else k
        if not 1 <= k <= there:
            of_class = '' if class_name is None else f' of class {class_name!a}'
            raise InputError(f'-k {k}: the index has {there} pictures{of_class}; ask for 1 to {there}')
        rank = self.rank
        similarities, found = self._nearest(embeddings, rank if rows is not None else max(k, rank))
        nearness = similarities[:, rank - 1]
        if rows is not None:
            similarities, found = nearest.top_k(embeddings, self._gallery, k, rows)
        pairs = zip(similarities[:, :k].tolist(), found[:, :k].tolist(), strict=True)
        return [[self.match(row, near) for near, row in zip(*of_one, strict=True)] for of_one in pairs], nearness

    def _nearest(self, embeddings: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self._state.graph:
            similarities, rows = self._state.graph.top_k(embeddings, k)
            if np.all(rows >= 0):  # It found as many.
                return similarities, rows
        return nearest.top_k(embeddings, self._gallery, k)

    def match(self, row: int, similarity: float = 1.0) -> Match:
        """Returns what the index knows of one of its pictures, as like one as is said."""
        path, class_name = self._state.database.execute(
            'SELECT path, class FROM pictures WHERE row = ?', (row,)
        ).fetchone()
        return Match(similarity, os.fsdecode(path), class_name, row)

    def _rows_of(self, class_name: str) -> np.ndarray:
        class_name = class_name.encode(errors='replace').decode()  # As `pictures.find` names them.
        if class_name not in self._rows_of_classes:
            rows = self._state.database.execute('SELECT row FROM pictures WHERE class = ? ORDER BY row', (class_name,))
            rows = np.array([row for (row,) in rows], np.int32)
            if not len(rows):
                there = ', '.join(name or "'' (in no sub-folder)" for name in self.classes())
                raise InputError(f'--class={class_name!a}: the index has no such class; it has {there}')
            self._rows_of_classes[class_name] = rows
        return self._rows_of_classes[class_name]


def _expanded(path: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(os.path.expanduser(path))


def _require_same(path: pathlib.Path, manifest: dict, encoder: Encoder) -> None:
    before = manifest['encoder']
    if before['fingerprint'] != encoder.fingerprint:
        raise InputError(
            f'--index={path}: is of another encoder ({before["source"]}, fingerprint {before["fingerprint"]}, not '
            f'{encoder.fingerprint}); give that one, or another --index'
        )

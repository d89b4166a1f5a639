"""A page to search with, for this machine alone: drop a picture, see those like it.

A client names pictures of the index by their rows, never by paths; a picture that it sends is decoded, whatever it says
to be; and what it gets to see of a picture is drawn anew from its pixels.
"""

import functools
import io
import os
import pathlib
import socket

import anyio
import numpy as np
import uvicorn
from starlette import datastructures
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from simclr_cifar import decoding, pages
from simclr_cifar.config import InputError
from simclr_cifar.search.index import Index, Match

MOST_BYTES = 32 * 2**20  # of a picture that is sent
_MOST_HELD = 256 * 2**20  # bytes of pictures that are being sent, at a time
_SECONDS = 20.0  # in which it has to be here
_CLIENTS = 512  # at a time; others are told to come again
_PREVIEW = 256  # pixels of the longer side
_PREVIEWS_KEPT = 2000
_SHOWN_FIRST, _MAPPED = 30, 2000  # pictures, evenly from the whole index
_MOST = 200  # neighbours
_HOSTS = ['127.0.0.1', 'localhost', '[::1]']
_TEMPLATES = pathlib.Path(pages.__file__).parent / 'templates'
_HEADERS = {
    # Nothing from elsewhere, and nothing that is not in a file of its own.
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
}


def make_app(index: Index) -> Starlette:
    """Returns the application: the page, and what it asks for.

    GET /about: how many pictures there are, of which classes. GET /picture/<row>: one, as WebP. GET /some: pictures to
    begin with. GET /like/<row> and POST /like, whose body is a picture's file: its neighbours; ?k= how many, ?class= of
    which. GET /map: places of pictures, similar ones near each other. Errors are JSON, {"error": a line}.
    """
    everyone, uploads = _Answers(index), _Uploads()
    working, mapping = (anyio.CapacityLimiter(count) for count in (os.cpu_count() or 1, 1))

    def route(path: str, answer, method: str = 'GET', limiter: anyio.CapacityLimiter = working) -> Route:
        async def endpoint(request: Request) -> Response:
            if request.headers.get('sec-fetch-site', 'none') not in ('same-origin', 'none'):
                raise HTTPException(403, 'only this page may ask')  # Not one that a browser has from elsewhere.
            body = await uploads.read(request) if method == 'POST' else b''
            try:
                return await anyio.to_thread.run_sync(answer, request, body, limiter=limiter)
            except InputError as error:
                raise HTTPException(400, str(error)) from error

        return Route(path, endpoint, methods=[method])

    def static(path: str, kind: str, *names: str) -> Route:
        content = '\n'.join((_TEMPLATES / name).read_text() for name in names)

        async def endpoint(request: Request) -> Response:
            return Response(content, media_type=kind)

        return Route(path, endpoint)

    return Starlette(
        routes=[
            static('/', 'text/html', 'search.html'),
            static('/icon.svg', 'image/svg+xml', 'search.svg'),
            static('/page.css', 'text/css', 'style.css', 'search.css'),
            static('/page.js', 'text/javascript', 'search.js'),
            route('/about', everyone.about),
            route('/some', everyone.some),
            route('/picture/{row:int}', everyone.picture),
            route('/like/{row:int}', everyone.like_one),
            route('/like', everyone.like_sent, 'POST'),
            route('/map', everyone.map, limiter=mapping),
        ],
        middleware=[Middleware(_Headers), Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )


class _Answers:
    """What is answered to (request, its body), in threads."""

    def __init__(self, index: Index):
        self._index, self._classes = index, index.classes()
        self._preview = functools.lru_cache(_PREVIEWS_KEPT)(_preview)
        self._map = None
        # What a browser keeps of one index it does not show of another.
        self._version = index.manifest['data']['sha256'][:12]

    def about(self, request: Request, body: bytes) -> Response:
        data = self._index.manifest['data']
        return JSONResponse(
            {
                'pictures': len(self._index),
                'classes': self._classes,
                'sources': data['sources'],
                'threshold': self._index.threshold,
                'version': self._version,
            }
        )

    def some(self, request: Request, body: bytes) -> Response:
        rows = np.random.default_rng(0).permutation(_evenly(len(self._index), _SHOWN_FIRST)).tolist()
        return JSONResponse({'matches': [_told(self._index.match(row)) for row in rows]})

    def picture(self, request: Request, body: bytes) -> Response:
        path = self._index.match(self._row(request)).path
        kept = {'Cache-Control': 'private, max-age=600'} if request.query_params.get('v') == self._version else {}
        try:
            told = os.stat(path)
            drawn = self._preview(path, told.st_mtime_ns, told.st_size)
        except (OSError, decoding.BrokenImage) as error:
            raise HTTPException(404, 'the picture is not there any more, or is none any more') from error
        return Response(drawn, media_type='image/webp', headers={'Cache-Control': 'no-store'} | kept)

    def like_one(self, request: Request, body: bytes) -> Response:
        row = self._row(request)
        asked = self._index.match(row)
        return self._answer(request, np.array(self._index.embeddings[row : row + 1]), _told(asked))

    def like_sent(self, request: Request, body: bytes) -> Response:
        return self._answer(request, self._index.encoder.embed([io.BytesIO(body)]), None)

    def _answer(self, request: Request, embedding: np.ndarray, asked: dict | None) -> Response:
        class_name = request.query_params.get('class')
        try:
            k = int(request.query_params.get('k', 10))
        except ValueError:
            raise InputError('k: must be a whole number') from None
        (matches,), (nearness,) = self._index.look(embedding, min(k, self._most(class_name)), class_name)
        threshold = self._index.threshold
        return JSONResponse(
            {
                'asked': asked,
                'matches': [_told(match) for match in matches],
                'known': threshold is None or bool(nearness >= threshold),
                'nearness': float(nearness),
                'threshold': threshold,
            }
        )

    def _most(self, class_name: str | None) -> int:
        there = len(self._index) if class_name is None else self._classes.get(class_name, _MOST)
        return min(_MOST, there)

    def map(self, request: Request, body: bytes) -> Response:
        if self._map is None:  # One thread at a time makes it.
            rows = _evenly(len(self._index), _MAPPED)
            places = pages.project(np.array(self._index.embeddings[rows]))
            low, span = places.min(axis=0), np.ptp(places, axis=0).max() or 1
            places = np.round((places - low) / span, 4).tolist()
            self._map = [
                {'row': row, 'class': self._index.match(row).class_name, 'x': x, 'y': y}
                for row, (x, y) in zip(rows, places, strict=True)
            ]
        return JSONResponse(self._map)

    def _row(self, request: Request) -> int:
        row = request.path_params['row']
        if not row < len(self._index):
            raise HTTPException(404, f'there are only {len(self._index)} pictures')
        return row


def _evenly(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist()


def _told(match: Match) -> dict:
    # A name may be of bytes that are no text.
    path = os.fsencode(match.path).decode(errors='replace')
    return {'row': match.row, 'similarity': match.similarity, 'class': match.class_name, 'path': path}


def _preview(path: str, mtime_ns: int, size: int) -> bytes:
    with decoding.open_file(path) as file:
        return decoding.preview(file, _PREVIEW)


class _Uploads:
    """Bodies of requests, of which only so many bytes are held at a time."""

    def __init__(self):
        self._held = 0

    async def read(self, request: Request) -> bytes:
        too_large = HTTPException(413, f'a picture of more than {MOST_BYTES // 2**20} MB; send a smaller one')
        length = request.headers.get('content-length', '0')
        if not length.isdigit() or int(length) > MOST_BYTES:
            raise too_large
        parts, total = [], 0
        try:
            with anyio.fail_after(_SECONDS):
                async for part in request.stream():
                    parts.append(part)
                    total += len(part)
                    self._held += len(part)
                    if total > MOST_BYTES:
                        raise too_large
                    if self._held > _MOST_HELD:
                        raise HTTPException(503, 'too many pictures at once; send it again')
        except TimeoutError:
            raise HTTPException(408, f'the picture was not here within {_SECONDS:g} s; send it again') from None
        except ClientDisconnect:
            raise HTTPException(400, 'the picture was cut off') from None
        finally:
            self._held -= total
        return b''.join(parts)


async def _refused(request: Request, error: HTTPException) -> Response:
    return JSONResponse({'error': ' '.join(str(error.detail).split())}, error.status_code, headers=error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({'error': 'something went wrong; the terminal tells what'}, 500)


class _Headers:
    """Adds _HEADERS to every response."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        async def with_headers(message):
            if message['type'] == 'http.response.start':
                datastructures.MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers)


def serve(index: Index, port: int, ready) -> None:
    """Serves the page until the process is told to end.

    Args:
      index: its encoder is loaded and tried first.
      port: 0: any that is free.
      ready: called with the page's address when it can be opened.

    Raises:
      InputError: the port is in use.
    """
    index.encoder.embed(np.zeros((1, *index.encoder.image_shape), np.uint8))
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(('127.0.0.1', port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise InputError(
            f'--port={port}: cannot be had ({getattr(error, "strerror", error)}); choose another, or 0 for any'
        ) from error
    config = uvicorn.Config(
        make_app(index), log_level='error', limit_concurrency=_CLIENTS, timeout_keep_alive=10, server_header=False
    )
    listening.listen()
    ready(f'http://127.0.0.1:{listening.getsockname()[1]}/')
    uvicorn.Server(config).run(sockets=[listening])

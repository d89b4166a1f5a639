"""From image files, of anyone's making, to arrays: what is broken, huge or of an unknown kind is told, not trusted."""

import contextlib
import dataclasses
import functools
import io
import itertools
import math
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from simclr_cifar.config import InputError

_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'GIF', 'PPM')
_MOST_PIXELS = 64 * 2**20  # of one image, before it is scaled
_LARGE_PIXELS, _ONE_LARGE = 2**22, threading.Lock()  # of which one is decoded at a time: each may take 1 GiB
_PART_BYTES = 2**22  # of images that are decoded before others are read
_MARGIN = 2  # times as many pixels as are needed are decoded at least, and scaled
_PREVIEW_QUALITY = 85

# More than _MOST_PIXELS are refused, fewer are no reason to warn; nor is what else is odd about a file that decodes.
warnings.filterwarnings('ignore', module=r'PIL\.')


class BrokenImage(Exception):
    """Why a file is no image that can be read, in a few words."""


def decode(file: BinaryIO, image_size: int = 0) -> np.ndarray:
    """Returns the image in a file, the first where there are several, upright, as uint8 [H, W, 3].

    Transparent parts are white. Of 16 bits of grey the 8 nearest are taken, of colours the first 8.

    Args:
      file: of JPEG, PNG, WebP, BMP, TIFF, GIF or PPM.
      image_size: H and W in pixels; the centre of the image is scaled to it. 0: as the image is.

    Raises:
      BrokenImage: the file is none of these, is damaged or cut off, or has too many pixels.
      OSError: it cannot be read.
    """
    size = (image_size, image_size)
    fit = functools.partial(ImageOps.fit, size=size, method=Image.Resampling.BICUBIC) if image_size else None
    return np.asarray(_opened(file, image_size, fit))


def preview(file: BinaryIO, longest: int) -> bytes:
    """Returns the whole image in a file, as a WebP with no side longer than so many pixels; errors as of `decode`."""
    small = io.BytesIO()

    def fit(image):
        scale = min(longest / max(image.size), 1)
        size = tuple(max(round(scale * side), 1) for side in image.size)
        return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)

    _opened(file, longest, fit).save(small, 'webp', quality=_PREVIEW_QUALITY)
    return small.getvalue()


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Opens a file that may be no image, nor anything else that can be read to its end.

    Raises:
      BrokenImage: it is no regular file.
      OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # A pipe would be waited for.
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, 'rb')
    os.close(descriptor)
    raise BrokenImage('not a file')


def _opened(file: BinaryIO, needed: int, fit: Callable[[Image.Image], Image.Image] | None) -> Image.Image:
    """Returns the image, upright, in colours, and fitted, where so many pixels a side are needed of it."""
    try:
        image = Image.open(file, formats=_FORMATS)
        pixels = image.width * image.height
        if pixels > _MOST_PIXELS:
            raise BrokenImage(f'{pixels:,} pixels are more than {_MOST_PIXELS:,}')
        if fit:
            # A JPEG far larger than needed is decoded at an eighth to a half of its size, in a fraction of the time.
            image.draft(None, (_MARGIN * needed, _MARGIN * needed))
        # Of a progressive JPEG all is held, however small it is decoded.
        held = pixels if image.info.get('progressive') else image.width * image.height
        with _ONE_LARGE if held > _LARGE_PIXELS else contextlib.nullcontext():
            image = _rgb(ImageOps.exif_transpose(image))
            return fit(image) if fit else image
    except (BrokenImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BrokenImage(f'is none of {", ".join(_FORMATS)}, or its beginning is damaged') from error
    except Exception as error:  # Each format has errors of its own.
        if isinstance(error, OSError) and error.errno:
            raise  # The disk's, not the image's.
        raise BrokenImage(' '.join(str(error).split())[:120] or type(error).__name__) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ('I', 'F'):
        raise BrokenImage('its pixels are numbers of 32 bits, whose black and white nothing tells')
    if image.mode.startswith('I;16'):
        values = np.asarray(image)
        transparent = values == image.info.get('transparency', -1)
        image = Image.fromarray(np.where(transparent, 255, (values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        coloured = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), coloured)
    return image.convert('RGB')


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An image that is not decoded yet: its name, for people; what opens its file; its label."""

    name: str
    open: Callable[[], BinaryIO]
    label: int


def decode_pieces(
    encoded: Iterable[Encoded], image_size: int, leave_out: Callable[[str, BrokenImage], None]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (images uint8 [n, H, W, 3], labels int32 [n]) of one part of the images after another, in their order.

    Args:
      encoded: the images.
      image_size: as of `decode`.
      leave_out: called with the name of each image that is broken, and what is wrong with it.

    Raises:
      InputError: the images differ in size, or one cannot be read.
    """
    encoded, first = iter(encoded), None

    def decode_one(one):
        try:
            with one.open() as file:
                image = decode(file, image_size)
        except BrokenImage as error:
            return error
        except FileNotFoundError:
            return BrokenImage('has gone')
        except OSError as error:
            raise InputError(f'--config.dataset: {one.name!a} cannot be read ({error.strerror}); see to it') from error
        if first and image.shape != first[1]:
            sizes = [f'{name} is {width}x{height}' for name, (height, width, _) in (first, (one.name, image.shape))]
            raise InputError(
                f'--config.image_size=0: the images differ in size ({", ".join(sizes)}); give the size in pixels that '
                'all are to be scaled to, as --config.image_size=64'
            )
        return image

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # What decodes lets other threads run.
        # One alone, until it is known how large they are.
        while part := list(itertools.islice(encoded, max(1, _PART_BYTES // math.prod(first[1])) if first else 1)):
            images, labels = [], []
            for one, image in zip(part, threads.map(decode_one, part), strict=True):
                if isinstance(image, BrokenImage):
                    leave_out(one.name, image)
                    continue
                first = first or (one.name, image.shape)
                images.append(image)
                labels.append(one.label)
            if images:
                yield np.stack(images), np.array(labels, np.int32)

"""The content of image files of many kinds, for the tests that decode them."""

import io
import zlib

import numpy as np
from PIL import Image

RED, WHITE = (200, 30, 40), (255, 255, 255)


def encoded(format='PNG', mode='RGB', colour=RED, size=(12, 10), **options):
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, format, **options)
    return file.getvalue()


def grey_16_bits(value):
    file = io.BytesIO()
    Image.fromarray(np.full((10, 12), value, np.uint16)).save(file, 'PNG')
    return file.getvalue()


def animated():
    first, second = (Image.new('RGB', (12, 10), colour) for colour in (RED, WHITE))
    file = io.BytesIO()
    first.save(file, 'GIF', save_all=True, append_images=[second])
    return file.getvalue()


def palette():
    file = io.BytesIO()
    Image.new('RGB', (12, 10), RED).quantize(4).save(file, 'PNG')
    return file.getvalue()


def bomb(width=60_000, height=60_000):
    """A PNG of a few hundred bytes whose header promises billions of pixels."""
    content = bytearray(encoded(size=(1, 1)))
    content[16:24] = width.to_bytes(4, 'big') + height.to_bytes(4, 'big')
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, 'big')
    return bytes(content)


def write(path, content):
    """Writes a file, and the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)

"""Image files of anyone's making: what a person sees, or why there is nothing to see."""

import io
import os

import numpy as np
import pytest
from image_files import RED, WHITE, animated, bomb, encoded, grey_16_bits, palette
from PIL import Image, ImageOps

from simclr_cifar import decoding

KINDS = {
    'PNG': (encoded(), RED),
    'JPEG': (encoded('JPEG', quality=100, subsampling=0), RED),
    'WebP': (encoded('WEBP', lossless=True), RED),
    'BMP': (encoded('BMP'), RED),
    'TIFF': (encoded('TIFF'), RED),
    'PPM': (encoded('PPM'), RED),
    'animated GIF': (animated(), RED),
    'palette': (palette(), RED),
    'grey': (encoded(mode='L', colour=77), (77, 77, 77)),
    'one bit': (encoded(mode='1', colour=1), WHITE),
    'opaque': (encoded(mode='RGBA', colour=(*RED, 255)), RED),
    'transparent': (encoded(mode='RGBA', colour=(*RED, 0)), WHITE),
    'transparent grey': (encoded(mode='LA', colour=(100, 0)), WHITE),
    '16 bits': (grey_16_bits(0x4040), (64, 64, 64)),
    'CMYK': (encoded('TIFF', mode='CMYK', colour=(0, 255, 255, 0)), (255, 0, 0)),
}


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_image_becomes_what_a_person_sees(kind):
    content, expected = KINDS[kind]
    image = decoding.decode(io.BytesIO(content))
    assert image.dtype == np.uint8
    assert image.shape == (10, 12, 3)
    np.testing.assert_allclose(image, np.broadcast_to(expected, image.shape), atol=2)


def test_a_camera_held_upright_is_heard():
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = RED  # On the left, which the camera says is up.
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG', exif=exif)
    image = decoding.decode(file)
    assert image.shape == (8, 4, 3)
    np.testing.assert_array_equal(image[:4], np.broadcast_to(RED, (4, 4, 3)))


def test_images_are_scaled_with_their_proportions():
    pixels = np.full((20, 60, 3), 255, np.uint8)
    pixels[:, 20:40] = RED  # The middle is what is left.
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    np.testing.assert_allclose(decoding.decode(file, 5)[:, 1:4], np.broadcast_to(RED, (5, 3, 3)), atol=12)
    checkered = np.kron(np.indices((50, 50)).sum(axis=0) % 2, np.ones((2, 2))) * 255
    file = io.BytesIO()
    Image.fromarray(checkered.astype(np.uint8)).save(file, 'PNG')
    assert np.ptp(decoding.decode(file, 10).astype(int)) < 40  # Finer than the pixels: grey, no pattern.


BROKEN = {
    'empty': (b'', 'is none of JPEG, PNG'),
    'text': (b'not an image at all', 'is none of JPEG, PNG'),
    'PNG cut off': (encoded()[:20], 'is none of|runcated'),
    'JPEG cut off': (encoded('JPEG', size=(200, 200))[:400], 'runcated'),
    'bomb': (bomb(), 'exceeds limit'),
    'small bomb': (bomb(8_500, 8_500), '72,250,000 pixels are more than'),
    'floating-point': (encoded('TIFF', mode='F', colour=0.5), 'numbers of 32 bits'),
    '32 bits': (encoded('TIFF', mode='I', colour=200), 'numbers of 32 bits'),
    'PostScript': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'is none of JPEG, PNG'),
}


@pytest.mark.parametrize('kind', BROKEN)
def test_what_is_no_image_says_why(kind):
    content, said = BROKEN[kind]
    with pytest.raises(decoding.BrokenImage, match=said):
        decoding.decode(io.BytesIO(content))


def test_a_large_jpeg_is_decoded_small_and_looks_as_if_it_were_not():
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8))
    file = io.BytesIO()
    smooth.resize((900, 700), Image.Resampling.BICUBIC).save(file, 'JPEG', quality=95)
    whole = ImageOps.fit(Image.open(file).convert('RGB'), (32, 32), Image.Resampling.BICUBIC)
    assert np.abs(decoding.decode(file, 32).astype(float) - np.asarray(whole)).mean() < 4


SIZES = [((3000, 1), (64, 1)), ((1, 3000), (1, 64)), ((128, 64), (64, 32)), ((9, 5), (9, 5))]


@pytest.mark.parametrize(('size', 'expected'), SIZES)
def test_a_preview_is_whole_and_small(size, expected):
    preview = decoding.preview(io.BytesIO(encoded(size=size)), 64)
    with Image.open(io.BytesIO(preview), formats=['WEBP']) as image:
        assert image.size == expected
        assert np.abs(np.asarray(image.convert('RGB'), float) - RED).max() < 12


def test_what_is_no_regular_file_is_no_image(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(decoding.BrokenImage, match='not a file'):
        decoding.open_file(tmp_path / 'pipe')
    with pytest.raises(decoding.BrokenImage, match='not a file'):
        decoding.open_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        decoding.open_file(tmp_path / 'missing')

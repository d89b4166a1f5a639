"""Augmentations: random changes of one image, on the device and to be vmapped.

Each is (key, image float32 [H, W, 3] in [0, 1], config) -> an image alike. An augmentation is several of them by name,
one after the other, as in 'pad_and_crop,flip'.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import lax

from simclr_cifar.config import InputError

# Of red, green and blue in a grey that looks as bright: ITU-R BT.601.
_LUMA = (0.299, 0.587, 0.114)
_JITTERED, _GREYED, _BLURRED = 0.8, 0.2, 0.5  # how likely
_ASPECT_RATIO = 4 / 3  # the widest
_CROPS_DRAWN = 10  # before the largest is taken
_BLUR_SIGMA = (0.1, 2.0)  # pixels
_NO_COLOUR = 0.5
_SHEET_COLUMNS = 12


def flip(key: jax.Array, image: jax.Array, config: ml_collections.ConfigDict) -> jax.Array:
    """Mirrors every other image, left to right."""
    return _mirrored(jax.random.bernoulli(key), image)


def _mirrored(whether, image):
    return jnp.where(whether, image[:, ::-1], image)


def pad_and_crop(key: jax.Array, image: jax.Array, config: ml_collections.ConfigDict) -> jax.Array:
    """Moves the image by up to crop_padding pixels up or down and left or right; what is missing is mirrored in."""
    padding = config.crop_padding
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), 'reflect')
    row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return lax.dynamic_slice(padded, (row, column, 0), image.shape)


def random_resized_crop(key: jax.Array, image: jax.Array, config: ml_collections.ConfigDict) -> jax.Array:
    """Cuts out a part of random area, aspect ratio and place and stretches it to the image's size.

    The area is uniform from crop_smallest_area of the image to all of it, the logarithm of the aspect ratio uniform
    between 3:4 and 4:3. A part that does not fit into the image is drawn again; after ten that do not, it is the
    largest part of an allowed aspect ratio. Bilinear. Source: "Going Deeper with Convolutions" (Szegedy et al., 2014),
    with the ranges of SimCLR (Chen et al., 2020) and the draws of torchvision's RandomResizedCrop.
    """
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    height, width, _ = image.shape
    widest = math.log(_ASPECT_RATIO)
    area = jax.random.uniform(area_key, (_CROPS_DRAWN,), minval=config.crop_smallest_area, maxval=1)
    # Width by height in pixels; the next lines are of the shares that a part has of the image's sides.
    ratio = jnp.exp(jax.random.uniform(ratio_key, (_CROPS_DRAWN,), minval=-widest, maxval=widest)) * (height / width)
    drawn = jnp.sqrt(jnp.stack([area / ratio, area * ratio], axis=1))
    longest = _ASPECT_RATIO * min(height, width)
    largest = jnp.array([min(1, longest / height), min(1, longest / width)])
    share = largest
    for number in reversed(range(_CROPS_DRAWN)):
        share = jnp.where(jnp.all(drawn[number] <= 1), drawn[number], share)
    sides = jnp.array([height, width], jnp.float32)
    start = jax.random.uniform(place_key, (2,)) * (1 - share) * sides
    return jax.image.scale_and_translate(image, image.shape, (0, 1), 1 / share, -start / share, 'linear')


def colour_jitter(key: jax.Array, image: jax.Array, config: ml_collections.ConfigDict) -> jax.Array:
    """Changes brightness, contrast, saturation and hue of four images in five, in this order.

    With strength s, the first three are blends of the image with black, with its mean grey and with its own grey, by a
    factor uniform in [1 - 0.8 s, 1 + 0.8 s], and the hue is turned by up to 0.2 s of the circle either way. Source:
    SimCLR (Chen et al., 2020), there in a random order.
    """
    whether, *keys = jax.random.split(key, 5)
    strength = config.jitter_strength
    factors = [
        jax.random.uniform(key, minval=max(0, 1 - 0.8 * strength), maxval=1 + 0.8 * strength) for key in keys[:3]
    ]
    jittered = _blend(image, jnp.zeros_like(image), factors[0])
    jittered = _blend(jittered, jnp.full_like(image, jnp.mean(_grey(jittered))), factors[1])
    jittered = _blend(jittered, jnp.broadcast_to(_grey(jittered), image.shape), factors[2])
    turn = jax.random.uniform(keys[3], minval=-0.2 * strength, maxval=0.2 * strength)
    return jnp.where(jax.random.bernoulli(whether, _JITTERED), _turn_hue(jittered, turn), image)


def _blend(image, other, factor):
    return jnp.clip(factor * image + (1 - factor) * other, 0, 1)


def _grey(image):
    """[H, W, 3] -> [H, W, 1]."""
    return jnp.sum(image * jnp.array(_LUMA).reshape(1, 1, 3), axis=-1, keepdims=True)


def _turn_hue(image, turn):
    """Turns the hue by a share of the circle; value and saturation, of the HSV model, stay."""
    value, least = jnp.max(image, axis=-1), jnp.min(image, axis=-1)
    chroma = value - least
    red, green, blue = (image[..., channel] for channel in range(3))
    divisor = jnp.where(chroma == 0, 1, chroma)
    sector = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    # Sectors of the circle from each channel's own: 5, 3 and 1 before red, green and blue.
    distance = (jnp.array([5, 3, 1]).reshape(1, 1, 3) + (sector + 6 * turn)[..., None]) % 6
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(distance, 4 - distance), 0, 1)


def greyscale(key: jax.Array, image: jax.Array, config: ml_collections.ConfigDict) -> jax.Array:
    """Takes the colour from one image in five."""
    return jnp.where(jax.random.bernoulli(key, _GREYED), _grey(image), image)


def blur(key: jax.Array, image: jax.Array, config: ml_collections.ConfigDict) -> jax.Array:
    """Blurs every other image by a Gaussian of a standard deviation uniform in 0.1 to 2 pixels; nothing is padded."""
    whether, sigma_key = jax.random.split(key)
    sigma = jax.random.uniform(sigma_key, minval=_BLUR_SIGMA[0], maxval=_BLUR_SIGMA[1])

    def weights(size):
        distance = jnp.arange(size)[:, None] - jnp.arange(size)[None, :]
        return jax.nn.softmax(-(distance**2) / (2 * sigma**2), axis=1)

    height, width, _ = image.shape
    blurred = jnp.einsum('ih,hwc,jw->ijc', weights(height), image, weights(width), precision=lax.Precision.HIGHEST)
    return jnp.where(jax.random.bernoulli(whether, _BLURRED), blurred, image)


def cutout(key: jax.Array, image: jax.Array, config: ml_collections.ConfigDict) -> jax.Array:
    """Greys out a square of cutout_size pixels around a random one; at an edge less of it is left.

    Source: "Improved Regularization of Convolutional Neural Networks with Cutout" (DeVries & Taylor, 2017).
    """
    height, width, _ = image.shape
    centre = jax.random.randint(key, (2,), 0, jnp.array([height, width]))

    def inside(size, centre):
        offset = jnp.arange(size) - centre + config.cutout_size // 2
        return (offset >= 0) & (offset < config.cutout_size)

    cut = inside(height, centre[0])[:, None] & inside(width, centre[1])[None, :]
    return jnp.where(cut[..., None], _NO_COLOUR, image)


OPERATIONS = {
    operation.__name__: operation
    for operation in (flip, pad_and_crop, random_resized_crop, colour_jitter, greyscale, blur, cutout)
}
# Another kind: not of a key alone.
_ALTERNATING = 'alternating_flip'
RECIPES = {
    'none': '',
    'simclr': 'random_resized_crop,flip,colour_jitter,greyscale',
}


def operations(config: ml_collections.ConfigDict) -> list[str]:
    """Returns the names of what the config's augmentation does, in order.

    Raises:
      InputError: there is no operation of a name.
    """
    names = RECIPES.get(config.augmentation, config.augmentation)
    names = [name.strip() for name in names.split(',')] if names else []
    for name in names:
        if name not in OPERATIONS and name != _ALTERNATING:
            raise InputError(
                f'--config.augmentation={config.augmentation}: there is no {name!r}; give one of {", ".join(RECIPES)}, '
                f'or some of {", ".join(OPERATIONS)} and {_ALTERNATING}, separated by commas'
            )
    return names


def require_fit(config: ml_collections.ConfigDict, image_shape: tuple[int, ...]) -> None:
    """Checks that images, (H, W, C), can be augmented as the config says.

    Raises:
      InputError: an unknown operation, or images too small or without colours for one.
    """
    height, width, channels = image_shape
    names = operations(config)
    if 'pad_and_crop' in names and config.crop_padding >= min(height, width):
        raise InputError(
            f'--config.crop_padding={config.crop_padding}: mirrors at most {min(height, width) - 1} pixels of images '
            f'of {height}x{width}'
        )
    if config.pairs != 'class' and set(names) == {_ALTERNATING}:
        raise InputError(
            f'--config.augmentation={config.augmentation}: mirrors both views of an image alike; add another operation'
        )
    for name in ('colour_jitter', 'greyscale'):
        if name in names and channels != 3:
            raise InputError(f'--config.augmentation={config.augmentation}: {name} needs images in colour')


def contact_sheet(config: ml_collections.ConfigDict, images: np.ndarray) -> np.ndarray | None:
    """Returns what a person can judge the config's augmentation by, or None where there is none.

    Args:
      config: the run's.
      images: uint8 [N, H, W, C].

    Returns:
      uint8 [N, _SHEET_COLUMNS, H, W, C]: every image as it is, then as it is augmented in one epoch after the other.
    """
    if not operations(config):
        return None
    see = make_see(config)
    return np.stack([images, *(see(images, 0, epoch) for epoch in range(_SHEET_COLUMNS - 1))], axis=1)


def make_see(config: ml_collections.ConfigDict) -> Callable:
    """Returns (images uint8 [N, H, W, C], the first one's number, epoch) -> as training may see them, on the host.

    What is seen of an image depends on its number and the epoch alone. The config has an augmentation.
    """
    augment_image = make_augment(config)

    @jax.jit
    def see(images, first, epoch):
        def augmented(number, image):
            key = jax.random.fold_in(jax.random.key(0), number)
            seen = augment_image(jax.random.fold_in(key, epoch), key, epoch, image / jnp.float32(255))
            return jnp.round(255 * seen).astype(jnp.uint8)

        return jax.vmap(augmented)(first + jnp.arange(len(images)), images)

    return lambda images, first, epoch: np.asarray(see(images, first, epoch))


def make_augment(config: ml_collections.ConfigDict) -> Callable | None:
    """Returns the config's augmentation, or None where there is none.

    It is (key, own_key, epoch, image float32 [H, W, 3] in [0, 1]) -> an image alike. Operations draw from the key, save
    'alternating_flip', which mirrors an image every other epoch, from one on that its own key tells: over two epochs
    every image is seen both ways (Jordan, 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU").

    Raises:
      InputError: as `operations`.
    """
    names = operations(config)
    if not names:
        return None

    def augment(key, own_key, epoch, image):
        for name, operation_key in zip(names, jax.random.split(key, len(names)), strict=True):
            if name == _ALTERNATING:
                image = _mirrored(jax.random.bernoulli(own_key) ^ (epoch % 2 == 1), image)
            else:
                image = OPERATIONS[name](operation_key, image, config)
        return image

    return augment

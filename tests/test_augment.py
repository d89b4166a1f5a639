import colorsys

import jax
import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from simclr_cifar import augment
from simclr_cifar import config as config_lib

IMAGE = np.random.default_rng(0).uniform(0.2, 0.8, (16, 16, 3)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 400)


def changed(**fields):
    config = config_lib.defaults()
    config.update(fields)
    return config


def augmented(name, image=IMAGE, keys=KEYS, **fields):
    operation = augment.OPERATIONS[name]
    return np.asarray(jax.jit(jax.vmap(lambda key: operation(key, jnp.asarray(image), changed(**fields))))(keys))


def assert_share(hits, expected):
    """Of 400 draws, within four standard deviations."""
    assert abs(np.mean(hits) - expected) < 4 * np.sqrt(expected * (1 - expected) / len(hits))


@pytest.mark.parametrize('name', augment.OPERATIONS)
def test_images_stay_images_and_draws_differ(name):
    images = augmented(name)
    assert images.shape == (400, *IMAGE.shape)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert len(np.unique(images, axis=0)) > 1
    np.testing.assert_allclose(augmented(name, keys=KEYS[:3]), images[:3], atol=1e-6)


def test_a_flip_is_a_flip_of_every_other_image():
    flipped = np.array([np.array_equal(image, IMAGE[:, ::-1]) for image in augmented('flip')])
    kept = np.array([np.array_equal(image, IMAGE) for image in augmented('flip')])
    assert np.all(flipped ^ kept)
    assert_share(flipped, 0.5)


def test_the_alternating_flip_shows_both_sides_in_two_epochs():
    augmentation = augment.make_augment(changed(augmentation='alternating_flip'))
    epochs = [
        np.asarray(jax.vmap(lambda own, epoch=epoch: augmentation(KEYS[0], own, epoch, IMAGE))(KEYS))
        for epoch in range(4)
    ]
    np.testing.assert_array_equal(epochs[0], epochs[1][:, :, ::-1])
    np.testing.assert_array_equal(epochs[0], epochs[2])
    np.testing.assert_array_equal(epochs[1], epochs[3])
    flipped = np.array([np.array_equal(image, IMAGE[:, ::-1]) for image in epochs[0]])
    assert_share(flipped, 0.5)


def test_pad_and_crop_moves_by_every_offset_alike():
    padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)), mode='reflect')
    offsets = {(row, column): padded[row : row + 16, column : column + 16] for row in range(5) for column in range(5)}
    found = []
    for image in augmented('pad_and_crop', crop_padding=2):
        (offset,) = [offset for offset, expected in offsets.items() if np.array_equal(image, expected)]
        found.append(offset)
    assert len(set(found)) == 25
    for axis in (0, 1):
        assert_share([offset[axis] == 0 for offset in found], 0.2)


def test_a_random_resized_crop_is_pil_s_of_the_same_box():
    # A ramp tells the box that was cut out: where it begins and how wide it is.
    side = 32
    ramp = np.stack([*np.meshgrid(np.arange(side), np.arange(side), indexing='ij'), np.zeros((side, side))], axis=-1)
    crops = augmented('random_resized_crop', image=ramp.astype(np.float32), crop_smallest_area=0.2)
    inner = slice(8, 24)  # Where no edge of the image is near.
    shares = [
        np.mean(np.diff(crops[:, inner, 16, 0], axis=1), axis=1),
        np.mean(np.diff(crops[:, 16, inner, 1], axis=1), axis=1),
    ]
    areas = shares[0] * shares[1]
    assert areas.min() > 0.19
    assert areas.max() < 1.001
    ratios = shares[0] / shares[1]
    assert np.all((ratios > 0.74) & (ratios < 1.34))
    assert len(np.unique(np.round(ratios, 2))) > 30

    noise = np.random.default_rng(1).uniform(0, 1, (side, side, 3)).astype(np.float32)
    results = augmented('random_resized_crop', image=noise, crop_smallest_area=0.2)
    for number in range(20):
        height, width = (share[number] * side for share in shares)
        # An output's middle (i + 1/2) lies at start + (i + 1/2) share of the input.
        top, left = (
            crop - 16.5 * share + 0.5
            for crop, share in (
                (crops[number, 16, 16, 0], shares[0][number]),
                (crops[number, 16, 16, 1], shares[1][number]),
            )
        )
        channels = [
            np.asarray(
                Image.fromarray(noise[..., channel]).transform(
                    (side, side),
                    Image.Transform.AFFINE,
                    (width / side, 0, left, 0, height / side, top),
                    Image.Resampling.BILINEAR,
                )
            )
            for channel in range(3)
        ]
        expected = np.stack(channels, axis=-1)
        np.testing.assert_allclose(results[number][2:-2, 2:-2], expected[2:-2, 2:-2], atol=2e-3)


@pytest.mark.parametrize('shape', [(32, 32), (16, 24)])
def test_the_boxes_of_random_resized_crops_are_torchvision_s(torchvision, shape):
    import torch

    # Its boxes have whole pixels: of an image this large they are as good as ours.
    large = torch.zeros(1, *(40 * side for side in shape))
    boxes = [
        torchvision.transforms.RandomResizedCrop.get_params(large, (0.08, 1), (3 / 4, 4 / 3))[2:] for _ in range(4000)
    ]
    theirs = np.array(boxes) / (40 * np.array(shape))

    height, width = shape
    ramp = np.stack([*np.meshgrid(np.arange(height), np.arange(width), indexing='ij'), np.zeros(shape)], axis=-1)
    keys = jax.random.split(jax.random.key(1), 4000)
    crops = augmented('random_resized_crop', image=ramp.astype(np.float32), keys=keys, crop_smallest_area=0.08)
    ours = np.stack(
        [
            np.mean(np.diff(crops[:, height // 4 : -height // 4, width // 2, 0], axis=1), axis=1),
            np.mean(np.diff(crops[:, height // 2, width // 4 : -width // 4, 1], axis=1), axis=1),
        ],
        axis=1,
    )
    for statistic in (lambda shares: shares.prod(axis=1), lambda shares: shares[:, 0], lambda shares: shares[:, 1]):
        # The largest distance of two empirical distributions of 4,000, where chance exceeds 0.0436 once in a thousand.
        assert scipy.stats.ks_2samp(statistic(ours), statistic(theirs)).statistic < 0.0436
    if shape == (32, 32):
        assert abs(ours.prod(axis=1).mean() - 0.488) < 0.015


@pytest.mark.parametrize('turn', [0.0, 1 / 3, -1 / 3, 1 / 6, 0.25, -0.1, 0.9])
def test_hues_turn_as_known_colours_do(turn):
    turned = np.asarray(augment._turn_hue(jnp.asarray(IMAGE), turn))
    hsv = matplotlib.colors.rgb_to_hsv(IMAGE.astype(np.float64))
    hsv[..., 0] = (hsv[..., 0] + turn) % 1
    np.testing.assert_allclose(turned, matplotlib.colors.hsv_to_rgb(hsv), atol=1e-5)


def test_red_turns_to_green_to_blue_and_grey_stays():
    red, green, blue, grey = (
        jnp.array([[colour]], jnp.float32) for colour in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5] * 3)
    )
    for before, after in ((red, green), (green, blue), (blue, red), (grey, grey)):
        np.testing.assert_allclose(augment._turn_hue(before, 1 / 3), after, atol=1e-6)


def test_colour_jitter_stays_within_its_ranges():
    colour = np.broadcast_to(np.array([0.5, 0.3, 0.2], np.float32), (4, 4, 3))
    images = augmented('colour_jitter', image=colour, jitter_strength=0.5)
    assert_share([np.array_equal(image, colour) for image in images], 0.2)
    jittered = np.unique(images[:, 0, 0], axis=0)
    hue, saturation, value = np.array([colorsys.rgb_to_hsv(*pixel.tolist()) for pixel in jittered]).T
    # Of one colour contrast is with its own grey, so it desaturates alone.
    turn = (hue - colorsys.rgb_to_hsv(0.5, 0.3, 0.2)[0] + 0.5) % 1 - 0.5
    assert np.max(np.abs(turn)) < 0.1 + 1e-5
    assert np.max(np.abs(turn)) > 0.09
    assert 0 < saturation.min() < 0.6 < saturation.max()
    assert value.min() > 0.5 * 0.6 * 0.6 * 0.6
    assert value.max() < 0.5 * 1.4 * 1.4 * 1.4


def test_no_strength_changes_nothing():
    np.testing.assert_allclose(
        augmented('colour_jitter', jitter_strength=0.0), np.broadcast_to(IMAGE, (400, 16, 16, 3)), atol=1e-6
    )


@pytest.mark.parametrize(('number', 'other'), [(0, 'black'), (1, 'mean grey'), (2, 'own grey')])
def test_a_blend_is_pil_s_enhancement(number, other, monkeypatch):
    """Each of brightness, contrast and saturation by itself, the others' factors being 1."""
    factors = iter([1.3 if own == number else 1.0 for own in range(3)] + [0.0])
    monkeypatch.setattr(jax.random, 'uniform', lambda *_, **__: next(factors))
    monkeypatch.setattr(jax.random, 'bernoulli', lambda *_: True)
    ours = augment.colour_jitter(KEYS[0], jnp.asarray(IMAGE), changed())
    grey = IMAGE @ np.array([0.299, 0.587, 0.114], np.float32)
    others = {'black': 0.0, 'mean grey': grey.mean(), 'own grey': grey[..., None]}
    expected = np.clip(1.3 * IMAGE - 0.3 * others[other], 0, 1)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_greyscale_is_pil_s_of_one_image_in_five():
    images = augmented('greyscale')
    kept = np.array([np.array_equal(image, IMAGE) for image in images])
    assert_share(~kept, 0.2)
    grey = np.asarray(Image.fromarray((IMAGE * 255).round().astype(np.uint8)).convert('L')) / 255
    for image in images[~kept]:
        np.testing.assert_allclose(image, np.repeat(grey[..., None], 3, axis=-1), atol=1.01 / 255)


def test_blur_is_scipy_s_away_from_the_edges(monkeypatch):
    images = augmented('blur')
    assert_share([np.array_equal(image, IMAGE) for image in images], 0.5)
    monkeypatch.setattr(jax.random, 'uniform', lambda *_, **__: 1.1)
    monkeypatch.setattr(jax.random, 'bernoulli', lambda *_: True)
    ours = augment.blur(KEYS[0], jnp.asarray(IMAGE), changed())
    expected = scipy.ndimage.gaussian_filter(IMAGE.astype(np.float64), (1.1, 1.1, 0), truncate=8)
    np.testing.assert_allclose(ours[6:10, 6:10], expected[6:10, 6:10], atol=1e-4)
    np.testing.assert_allclose(augment.blur(KEYS[0], jnp.ones((8, 8, 3)), changed()), 1, atol=1e-6)


@pytest.mark.parametrize('size', [1, 4, 5])
def test_cutout_cuts_a_square_around_any_place(size):
    images = augmented('cutout', keys=jax.random.split(jax.random.key(1), 4000), cutout_size=size)
    cut = np.all(images == 0.5, axis=-1)
    np.testing.assert_array_equal(np.where(cut[..., None], IMAGE[None], images), np.broadcast_to(IMAGE, images.shape))
    centres = set()
    for mask in cut:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask.sum() == len(rows) * len(columns)
        assert np.all(np.diff(rows) == 1)
        assert np.all(np.diff(columns) == 1)
        assert max(len(rows), len(columns)) <= size
        centres.add((rows[0], columns[0]))
    assert np.max(cut.sum(axis=(1, 2))) == size**2
    assert len(centres) > 100
    assert cut.any(axis=0).all()


def test_operations_follow_one_another_in_their_order_with_keys_of_their_own():
    config = changed(augmentation='greyscale, cutout')
    augmentation, key = augment.make_augment(config), KEYS[5]
    first, second = jax.random.split(key, 2)
    expected = augment.cutout(second, augment.greyscale(first, jnp.asarray(IMAGE), config), config)
    np.testing.assert_array_equal(augmentation(key, KEYS[0], 0, jnp.asarray(IMAGE)), expected)


def test_recipes_are_made_of_operations():
    assert augment.make_augment(changed(augmentation='none')) is None
    assert augment.operations(changed(augmentation='simclr')) == [
        *('random_resized_crop', 'flip', 'colour_jitter', 'greyscale')
    ]


@pytest.mark.parametrize(
    ('fields', 'shape', 'said'),
    [
        ({'augmentation': 'flip,flap'}, (32, 32, 3), "there is no 'flap'"),
        ({'augmentation': 'pad_and_crop', 'crop_padding': 8}, (8, 8, 3), r'--config\.crop_padding=8: .* at most 7'),
        ({'augmentation': 'simclr'}, (8, 8, 1), 'colour_jitter needs images in colour'),
    ],
)
def test_what_does_not_fit_is_refused(fields, shape, said):
    with pytest.raises(config_lib.InputError, match=said):
        augment.require_fit(changed(**fields), shape)

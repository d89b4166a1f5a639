"""The training step as the reference program has it: a Keras data set of batches and a model with its own train step.

The design is that of the Keras example "Metric learning for image similarity search" (M. Kelcey, 2020).
"""

import os
import random

os.environ['KERAS_BACKEND'] = 'tensorflow'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import keras
import numpy as np
import tensorflow as tf

from simclr_cifar import config as config_lib
from simclr_cifar import data

# Of one call of the compiled program; more gain nothing.
_STEPS_PER_EXECUTION = 20


class Pairs(keras.utils.PyDataset):
    """An epoch's batches, float32 [2, C, H, W, 3] in [0, 1]: an anchor and another image of each class."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, batches: int):
        # With one worker fit at times waits, at an epoch's end, up to the epoch's time again for tf.data's autotuner to
        # wake; with two Keras turns that off, and is as fast otherwise.
        super().__init__(workers=2)
        self._images = images
        self._members = [np.flatnonzero(labels == label).tolist() for label in range(labels.max() + 1)]
        self._batches = batches

    def __len__(self):
        return self._batches

    def __getitem__(self, number):
        drawn = [random.sample(members, 2) for members in self._members]
        return self._images[np.transpose(drawn)]


def drawn_in_graph(images: np.ndarray, labels: np.ndarray, batches: int) -> tf.data.Dataset:
    """Returns the batches of `Pairs`, drawn by TensorFlow from uint8 images in its memory."""
    images, counts = tf.constant(np.asarray(images)), np.bincount(labels)
    order, starts = np.argsort(labels, kind='stable'), np.cumsum(counts) - counts

    def draw(_):
        anchors = tf.cast(tf.random.uniform(counts.shape) * counts.astype(np.float32), tf.int32)
        others = tf.cast(tf.random.uniform(counts.shape) * (counts - 1).astype(np.float32), tf.int32)
        members = tf.stack([anchors, others + tf.cast(others >= anchors, tf.int32)])
        drawn = tf.gather(order, starts.astype(np.int32) + members)
        return tf.cast(tf.gather(images, drawn), tf.float32) / 255

    options = tf.data.Options()
    options.autotune.enabled = False  # For what `Pairs` says.
    return tf.data.Dataset.range(batches).map(draw).prefetch(_STEPS_PER_EXECUTION).with_options(options)


class Similarity(keras.Model):
    """An encoder whose anchors are to find their own positives; one_pass encodes both at once."""

    def __init__(self, temperature: float, one_pass: bool, **arguments):
        super().__init__(**arguments)
        self._temperature = temperature
        self._one_pass = one_pass

    def train_step(self, batch):
        pairs = batch[0] if isinstance(batch, tuple) else batch
        with tf.GradientTape() as tape:
            if self._one_pass:
                both = self(tf.reshape(pairs, (-1, *pairs.shape[2:])), training=True)
                anchors, positives = tf.split(both, 2)
            else:
                anchors, positives = self(pairs[0], training=True), self(pairs[1], training=True)
            logits = tf.einsum('ae,pe->ap', anchors, positives) / self._temperature
            targets = tf.range(tf.shape(logits)[0])
            loss = self.compute_loss(y=targets, y_pred=logits)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == 'loss':
                metric.update_state(loss)
            else:
                metric.update_state(targets, logits)
        return {metric.name: metric.result() for metric in self.metrics}


def _prepare(num_classes: int, tuned: bool):
    """Returns (the compiled model, the training images)."""
    config = config_lib.defaults()
    train = data.select(data.load(config.dataset, 'train'), num_classes=num_classes)
    inputs = keras.Input(train.images.shape[1:])
    hidden = inputs
    for channels in config.channels:
        hidden = keras.layers.Conv2D(channels, 3, strides=2, padding='same', activation='relu')(hidden)
    hidden = keras.layers.GlobalAveragePooling2D()(hidden)
    embeddings = keras.layers.UnitNormalization()(keras.layers.Dense(config.embedding_dim)(hidden))
    model = Similarity(config.temperature, one_pass=tuned, inputs=inputs, outputs=embeddings)
    model.compile(
        optimizer=keras.optimizers.Adam(config.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name='accuracy')],
        steps_per_execution=_STEPS_PER_EXECUTION if tuned else 1,
    )
    return model, train


def _as_floats(images: np.ndarray) -> np.ndarray:
    return np.asarray(images, np.float32) / 255


def epoch(num_classes: int, batches: int, tuned: bool = False):
    """A repetition is `fit` for one epoch; tuned for speed, the program is no longer the reference's."""
    model, train = _prepare(num_classes, tuned)
    if tuned:
        pairs = drawn_in_graph(train.images, train.labels, batches)
    else:
        pairs = Pairs(_as_floats(train.images), train.labels, batches)

    def run():
        history = model.fit(pairs, epochs=1, shuffle=False, verbose=0).history
        return {name: values[0] for name, values in history.items()}

    return run


def losses(num_classes: int, weights: list[np.ndarray], pairs: np.ndarray, tuned: bool = False):
    """A repetition returns 'losses' of training on the pairs, int [steps, 2, C], from the weights.

    The weights are kernels HWIO and [in, out], each followed by its bias, in the order of the layers.
    """
    model, train = _prepare(num_classes, tuned)

    def run():
        model.set_weights(weights)
        found = []
        for batch in pairs:
            # Metrics are means since they were last reset.
            model.reset_metrics()
            found.append(float(model.train_on_batch(_as_floats(train.images[batch]), return_dict=True)['loss']))
        return {'losses': np.array(found)}

    return run

"""Optimisers and learning-rate schedules: from a config to what optax makes of it."""

import jax
import ml_collections
import optax
from optax import contrib

_LARS_TRUST_COEFFICIENT = 1e-3
_MUON_STEPS = 5  # of Newton and Schulz


def make_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Returns the learning rate by step: from 0 up to learning_rate within the warm-up, then as schedule says.

    'constant' stays there; 'linear' and 'cosine' (Loshchilov & Hutter, 2016) go down to final_learning_rate_share of it
    at the run's last step; 'one_cycle' (Smith & Topin, 2017) goes up and down along cosines, from a 25th of it
    and to a 250,000th at the run's last step.
    """
    steps = config.num_epochs * config.batches_per_epoch
    warmup, last = round(config.warmup_share * steps), max(1, steps - 1)
    peak, final = config.learning_rate, config.learning_rate * config.final_learning_rate_share
    if config.schedule == 'one_cycle':
        return optax.cosine_onecycle_schedule(last, peak, config.warmup_share)
    # Steps from the first after the warm-up to the last; a warm-up may fill the run.
    decay = max(1, last - warmup)
    after = {
        'constant': lambda: optax.constant_schedule(peak),
        'linear': lambda: optax.linear_schedule(peak, final, decay),
        'cosine': lambda: optax.cosine_decay_schedule(peak, decay, config.final_learning_rate_share),
    }[config.schedule]()
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0, peak, warmup), after], [warmup])


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Returns the config's optimiser: 'adam', 'sgd', 'lars' or 'muon'.

    Weights decay where they are kernels, biases and scales never: in 'adam' (Kingma & Ba, 2014) and 'muon' apart from
    the gradient, by learning rate times weight_decay (Loshchilov & Hutter, 2017), in 'sgd', with Nesterov's momentum,
    and 'lars' (You et al., 2017) as part of it. 'muon' (Jordan, 2024) orthogonalises the updates of kernels, those of
    convolutions as matrices of all that an output sees by the outputs, and leaves the rest to NAdam (Dozat, 2016).
    """
    schedule = make_schedule(config)
    if config.optimizer == 'adam':
        if not config.weight_decay:
            return optax.adam(schedule)
        return optax.adamw(schedule, weight_decay=config.weight_decay, mask=_kernels)
    if config.optimizer == 'sgd':
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay, _kernels),
            optax.sgd(schedule, config.momentum, nesterov=True),
        )
    if config.optimizer == 'lars':
        return optax.lars(
            schedule, config.weight_decay, _kernels, _LARS_TRUST_COEFFICIENT, 0.0, _kernels, config.momentum
        )
    return contrib.muon(
        schedule,
        ns_steps=_MUON_STEPS,
        beta=config.momentum,
        weight_decay=config.weight_decay,
        weight_decay_mask=_kernels,
        adam_learning_rate=lambda step: config.adam_learning_rate_share * schedule(step),
        muon_weight_dimension_numbers=_matrices,
    )


def _kernels(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _matrices(params):
    """Of a kernel's axes the last is that of outputs; the others are of what an output sees."""

    def of_leaf(leaf):
        axes = tuple(range(leaf.ndim))
        return contrib.MuonDimensionNumbers(axes[:-1], axes[-1]) if leaf.ndim > 1 else None

    return jax.tree.map(of_leaf, params)

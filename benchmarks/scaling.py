"""What replicas exchange in a step, counted in the compiled program, and what that costs on many accelerators."""

import math
import re

from benchmarks import harness, results
from benchmarks.harness import Contender

TITLE = 'Many accelerators'
_CONFIGS = {  # title: (file, fields); a group of 'views' is an image seen twice
    "c10, 'group' negatives": ('c10', {'groups_per_batch': 64}),
    "c10, 'batch' negatives": ('c10', {'groups_per_batch': 64, 'negatives': 'batch'}),
    'supcon_r18': ('supcon_r18', {'groups_per_batch': 64}),
    'simclr_r18': ('simclr_r18', {'groups_per_batch': 512}),
}
_DEVICES = 8
_ACCELERATORS = (8, 64, 512)
_IMAGES = 128  # of an accelerator's share of a batch
# Peak bfloat16 products, and the slowest link that a ring of so many crosses: NVLink 4 within 8 H100, 400 Gb/s of
# InfiniBand for each beyond (NVIDIA's DGX H100 data sheet).
_PEAK, _SHARE_OF_PEAK = 989e12, 0.3
_LINKS = {8: 450e9, 64: 50e9, 512: 50e9}
_BYTES = {'f32': 4, 'bf16': 2, 's32': 4, 'u32': 4, 'pred': 1}


def count(file: str, fields: dict):
    """A repetition is nothing; returns bytes 'reduced', 'gathered' and 'scattered' a step, and what computing takes."""
    import importlib

    import jax
    import numpy as np

    jax.config.update('jax_num_cpu_devices', _DEVICES)
    from simclr_cifar import models, parallel, sampling, step

    config = importlib.import_module(f'configs.{file}').get_config().unlock()
    config.update({'num_classes': 10, 'batches_per_epoch': 4, 'compute_dtype': 'float32'} | fields)
    mesh = parallel.make_mesh(config.groups_per_batch)
    labels = np.repeat(np.arange(10), 300)
    images = np.zeros((len(labels), 32, 32, 3), np.uint8)
    state = step.init_state(config, images, 0)
    arguments = jax.tree.map(lambda leaf: np.asarray(leaf)[None], state), np.zeros(1, np.int32), images
    text = step.compile_epoch(config, mesh).lower(*arguments, sampling.class_index(labels, 10)).compile().as_text()
    found = {
        'reduced': _exchanged(text, 'all-reduce'),
        'gathered': _exchanged(text, 'all-gather'),
        'scattered': _exchanged(text, 'reduce-scatter') * _DEVICES,
        'multiplications': models.operations(models.make_model(config), state.variables, images.shape[1:]),
        'images': 2 * config.groups_per_batch * (1 if config.pairs == 'views' else 10),
    }
    return lambda: found


def _exchanged(text: str, operation: str) -> int:
    """Returns the bytes of the results of an operation in a compiled program, every loop's body counted once."""
    total = 0
    for line in re.findall(rf'= (.*?) {operation}(?:-start)?\(', text):
        for dtype, shape in re.findall(r'(\w+)\[([\d,]*)\]', line):
            total += _BYTES[dtype] * math.prod(int(size) for size in shape.split(',') if size)
    return total


def measure() -> str:
    """Returns the section."""
    counted, on_paper = [], []
    for title, (file, fields) in _CONFIGS.items():
        contender = Contender(title, 'benchmarks.scaling:count', {'file': file, 'fields': fields})
        found = harness.alternate([contender], 1)[0].figures
        counted.append(
            [
                title,
                f'{found["images"]:,}',
                *(f'{found[name]:,}' for name in ('reduced', 'gathered', 'scattered', 'multiplications')),
            ]
        )
        on_paper += [[title, *_estimate(found, accelerators)] for accelerators in _ACCELERATORS]
    header = ['config', 'images a batch', 'bytes reduced', 'gathered', 'scattered', 'multiplications an image']
    paper = [
        'config',
        'accelerators',
        'images a batch',
        'computing',
        'reducing',
        'gathering',
        'gather 10 % of computing',
    ]
    notes = f"""\
Counted in the program compiled for {_DEVICES} simulated devices, in bytes of whole arrays: what a step reduces
(gradients, statistics), gathers (embeddings and labels) and scatters (the sums of the gathered embeddings' gradients).

On paper, milliseconds a step: {_IMAGES} images for each accelerator, 6 operations for a multiplication of the forward
pass, {_PEAK / 1e12:.0f} TFLOP/s at {_SHARE_OF_PEAK:.0%} (H100, bfloat16). A ring sends 2 (N - 1) / N of the bytes
reduced and (N - 1) / N of those gathered and scattered, at {_LINKS[8] / 1e9:.0f} GB/s within 8 and
{_LINKS[64] / 1e9:.0f} beyond.
Nothing overlaps, latency is left out. What is gathered and scattered, so many bytes for each of the B = {_IMAGES} N
images of a batch, grows with it, and what one accelerator computes hardly does: the last column is the B at which
it takes a tenth of the time of computing.
"""
    return '\n\n'.join(
        [results.environment(), notes.strip(), results.table(header, counted), results.table(paper, on_paper)]
    )


def _estimate(found: dict, accelerators: int) -> list[str]:
    share, link, batch = (accelerators - 1) / accelerators, _LINKS[accelerators], _IMAGES * accelerators
    computing = 6 * found['multiplications'] * _IMAGES / (_PEAK * _SHARE_OF_PEAK)
    of_image = (found['gathered'] + found['scattered']) / found['images']
    times = [computing, 2 * share * found['reduced'] / link, share * of_image * batch / link]
    limit = f'{0.1 * computing * link / of_image:,.0f}' if of_image else '-'
    return [str(accelerators), f'{batch:,}', *(f'{1e3 * seconds:.4f}' for seconds in times), limit]

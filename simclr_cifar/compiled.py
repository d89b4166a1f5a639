"""What a program tells JAX: to compute in 32 bits, and where to keep compiled programs."""

import contextlib
import hashlib
import os
import pathlib
import platform
import sys

from simclr_cifar import cache


def compute_in_32_bits() -> None:
    """Makes JAX compute in 32 bits whatever the environment says: a run's parameters and figures are float32."""
    os.environ['JAX_ENABLE_X64'] = '0'
    if jax := sys.modules.get('jax'):  # It has read the environment already.
        jax.config.update('jax_enable_x64', False)


def keep(cache_dir: str | None) -> None:
    """Lets JAX keep what it compiles for the next process, unless the environment says where; before JAX is imported.

    Args:
      cache_dir: as `cache.root`.
    """
    compute_in_32_bits()
    if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
        return
    # A home that several machines share: a program compiled for one processor may not run on another.
    processor = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):  # Linux alone has it, and not every container.
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        processor += ''.join(sorted({line for line in lines if line.startswith(('flags', 'Features'))}))
    root = cache.root(cache_dir) / 'compiled'
    folder = root / hashlib.sha256(processor.encode()).hexdigest()[:8]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Whoever can write there can have this process run what they like; chmod fails where another owns it.
        root.chmod(0o700)
    except OSError:
        return  # Compiled anew each time.
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

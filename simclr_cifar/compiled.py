"""What JAX is told before it is imported: to compute in 32 bits, and where to keep compiled programs."""

import contextlib
import hashlib
import os
import pathlib
import platform

from simclr_cifar import cache


def keep(cache_dir: str | None) -> None:
    """Lets JAX keep what it compiles for the next process, unless the environment says where; before JAX is imported.

    Args:
      cache_dir: as `cache.root`.
    """
    # A run is float32 whatever the environment says: its checkpoints, its random numbers and its figures.
    os.environ['JAX_ENABLE_X64'] = '0'
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

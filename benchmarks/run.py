"""Runs benchmarks by name and writes each one's section of RESULTS.md.

python -m benchmarks.run [name ...]
"""

import importlib
import sys

# A module each, with TITLE and measure() -> Markdown.
BENCHMARKS = ('step', 'convolutions', 'neighbours', 'retrieval', 'growth', 'scaling', 'feed', 'search', 'index')
ON_A_GPU = ('gpu',)  # Run where they are named.


def main(names: list[str]) -> int:
    """Runs those named, or all that run on a CPU; returns the exit status."""
    only_check = '--check' in names
    names = [name for name in names if name != '--check'] or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS + ON_A_GPU:
            print(f'error: no benchmark {name}; there are {", ".join(BENCHMARKS + ON_A_GPU)}', file=sys.stderr)
            return 2
    if only_check:
        return 0
    # Here, so that a name is checked before anything is installed.
    from benchmarks import harness, results

    for name in names:
        print(f'Measuring {name}', file=sys.stderr, flush=True)
        benchmark = importlib.import_module(f'benchmarks.{name}')
        try:
            body = benchmark.measure()
        except harness.ContenderFailed as error:
            print(f'error: {name}: {error}', file=sys.stderr)
            return 1
        print(results.write_section(name, benchmark.TITLE, body), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))

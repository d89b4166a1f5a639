"""The program measured beside its peers: benchmarks/run.sh writes RESULTS.md."""

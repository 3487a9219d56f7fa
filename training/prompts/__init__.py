"""The instructions of a run: read, freed of duplicates and of benchmarks, and dealt out."""

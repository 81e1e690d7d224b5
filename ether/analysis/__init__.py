"""Statistics over collected runs, independent of experiments and of the paper."""

"""The experiments, one module each. They know data, models and metrics, and no method: see `ether.experiments.common`."""

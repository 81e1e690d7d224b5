"""The experiments, one module each, independent of methods; the interface is defined in `ether.experiments.common`."""

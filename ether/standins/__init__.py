"""Tiny randomly initialised models in the paper's formats, to try the loading code over a hub mirror."""

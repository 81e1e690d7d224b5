"""Tiny, randomly initialised models in the formats of the paper's models, to test the loading code without their weights.

``python -m ether.standins llama MIRROR`` and ``python -m ether.standins diffusion MIRROR`` write them into a hub mirror.
"""

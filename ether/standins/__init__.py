"""Models for a hub mirror where the hub's are not at hand: tiny random ones in their formats, and real ones from GGUF files.

``python -m ether.standins KIND MIRROR`` writes them; see its ``--help`` for the kinds.
"""

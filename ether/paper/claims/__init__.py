"""The paper's claims as tests for `ether.analysis.claims`: one module with ``CLAIMS`` per exhibit module.

The texts are ours. If the paper gives no number for "similar" or "match", the text of the claim states the margin.
"""

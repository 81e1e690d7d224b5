"""The paper's claims as tests for `ether.analysis.claims`: one module with ``CLAIMS`` per exhibit module.

The texts are ours. If the paper gives no number for "similar" or "match", the text of the claim states the margin. ``BENCHMARK``
of a module is the heading of its claims on the page of all claims.
"""

ADDED = "not in the paper"  # the source of a statement that this suite tests in addition

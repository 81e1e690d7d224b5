"""The paper's claims as tests that `ether.analysis.claims` judges: one module an exhibit module, each with ``CLAIMS``.

The texts are ours. A claim that the paper makes without a number for "similar" or "match" has its margin stated in the text.
"""

"""Procedural data for the scales that need no network: small worlds whose every example is made from a seed."""

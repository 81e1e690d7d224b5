"""Quantities measured on models and outputs; nothing here knows the workflow or the paper's numbers."""

"""Measurements on models and their outputs, independent of the workflow and of the numbers in the paper."""

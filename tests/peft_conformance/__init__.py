"""PEFT's own tests, run against this package's tuners."""

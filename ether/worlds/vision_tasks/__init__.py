"""The six tasks of the vision world, one module each. A task's function `draw` makes pictures of given labels."""

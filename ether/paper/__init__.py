"""The numbers and claims of the paper, and their comparison with the numbers of this suite."""

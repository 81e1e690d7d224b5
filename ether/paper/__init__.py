"""What the paper printed, and how the suite's own numbers compare with it."""

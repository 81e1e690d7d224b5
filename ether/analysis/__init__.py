"""Statistics over the runs that the workflow collects. Nothing here knows an experiment or the paper."""

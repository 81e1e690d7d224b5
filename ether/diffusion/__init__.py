"""The common parts of the experiments on text-to-image diffusion: data set, sampler, loss, evaluation, saved samples."""

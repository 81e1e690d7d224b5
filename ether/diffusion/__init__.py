"""Parts shared by the experiments on the text-to-image diffusion model."""

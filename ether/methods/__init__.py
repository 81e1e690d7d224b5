"""Methods: adapting a model as a file of ``workflow/methods`` describes. Independent of the experiments."""

"""Methods: from a file of ``workflow/methods`` to an adapted model. Nothing here knows an experiment."""

"""Methods: from a YAML file to an adapted model. They know no experiment."""

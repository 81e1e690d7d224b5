"""The paper's tables and figures, made from collected metrics: one module an experiment."""

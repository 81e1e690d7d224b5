"""The paper's tables and figures, computed from collected metrics: one module per experiment."""

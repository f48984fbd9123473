"""The paper's results from scratch: trains its conditions, measures them, writes the report."""

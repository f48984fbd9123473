"""The search for hyper-parameters: its space, its trials, and what comes out."""

"""The paper: model, networks, losses, memory, perturbations and mixing."""

"""What Deperrois et al. (eLife 2022;11:e76384) published as numbers."""

LINEAR_SEPARABILITY = {
    "cifar10": {
        "full": (0.5825, 0.0070),
        "no_memory_mix": (0.5387, 0.0085),
        "no_rem": (0.4600, 0.0043),
        "no_nrem": (0.5800, 0.0034),
        "wake_only": (0.4225, 0.0054),
    },
    "svhn": {
        "full": (0.7892, 0.0040),
        "no_memory_mix": (0.6087, 0.0507),
        "no_rem": (0.4230, 0.0151),
        "no_nrem": (0.7325, 0.0022),
        "wake_only": (0.4193, 0.0065),
    },
}
"""Table 1, by data set and condition: the paper's linear probe after 50 epochs, mean accuracy on
the test images and its standard error over 4 seeds."""

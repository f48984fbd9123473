"""From flags to the model that they describe."""

from ad_keras.compute.optimizers import FusedAdam
from ad_keras.pad import adversaries, agreement, augmentations, mixing
from ad_keras.pad.hippocampus import AssociativeHippocampus, EpisodicHippocampus, Hippocampus
from ad_keras.pad.model import PAD
from ad_keras.pad.networks import build_encoder, build_generator
from ad_keras.pad.parts import Part
from ad_keras.pad.perturbations import Occlusion
from ad_keras.runs.config import Config

_ADVERSARIES = {
    "minimax": adversaries.Minimax,
    "non_saturating": adversaries.NonSaturating,
    "hinge": adversaries.Hinge,
    "least_squares": adversaries.LeastSquares,
}
_MIXINGS = {
    "convex": mixing.Mixing,
    "variance_preserving": mixing.VariancePreservingMixing,
    "component": mixing.ComponentMixing,
    "many_memories": mixing.ManyMemoriesMixing,
}
_AUGMENTATIONS = {
    "shift": augmentations.Shift,
    "rotation": augmentations.Rotation,
    "flip": augmentations.Flip,
    "grey": augmentations.Grey,
    "blur": augmentations.Blur,
    "noise": augmentations.Noise,
}


def build_model(config: Config, **parts) -> PAD:
    """The model that a configuration describes, compiled and untrained.

    Args:
        config: of a run.
        **parts: arguments of `PAD`, in place of those that the configuration describes.
    """
    shape = {
        "image_size": config.image_size,
        "latent_dim": config.latent_dim,
        "base_filters": config.base_filters,
        "seed": config.seed,
        "dtype": config.precision,
        "network": config.network,
    }
    described = {
        "hippocampus": _hippocampus(config),
        "mixing": _MIXINGS[config.mixing](config.mix_recent, config.mix_memories),
        "perturbation": _perturbation(config, config.perturbation),
        "recovery": _agreement(config, config.recovery),
        "adversary": _ADVERSARIES[config.adversary](),
        "glimpse": _perturbation(config, config.glimpse) if config.glimpse else None,
        "agreement": _agreement(config, config.agreement),
    }
    model = PAD(
        build_encoder(**shape),
        build_generator(**shape),
        phases=config.phases,
        reconstruction_weight=config.reconstruction_weight,
        kl_weight=config.kl_weight,
        external_weight=config.external_weight,
        gradient_penalty_weight=config.gradient_penalty_weight,
        agreement_weight=config.agreement_weight,
        recovery_weight=config.recovery_weight,
        internal_weight=config.internal_weight,
        wake_noise_variance=config.wake_noise_variance,
        nrem_memories=config.nrem_memories,
        average_weights=config.average_weights,
        seed=config.seed,
        **{**described, **parts},
    )
    encoder_optimizer, generator_optimizer = (
        FusedAdam(rate, beta_1=config.beta_1, beta_2=config.beta_2, epsilon=1e-8)
        for rate in (config.encoder_learning_rate, config.generator_learning_rate)
    )
    model.compile(encoder_optimizer, generator_optimizer)
    return model


def _hippocampus(config: Config) -> Hippocampus:
    if config.hippocampus == "last_batch":
        return Hippocampus(config.batch_size)
    if config.hippocampus == "associative":
        return AssociativeHippocampus(config.hippocampus_capacity)
    replacement = "reservoir" if config.hippocampus == "reservoir" else "oldest"
    return EpisodicHippocampus(config.hippocampus_capacity, replacement, config.seed)


def _agreement(config: Config, name: str) -> Part:
    if name == "contrast":
        return agreement.Contrast(config.temperature, config.views)
    if name == "distance":
        return agreement.LatentDistance()
    kind = agreement.VICReg if name == "vicreg" else agreement.CodingRate
    return kind(views=config.views)


def _perturbation(config: Config, names: tuple[str, ...]) -> Part:
    made = {
        "occlusion": lambda: Occlusion(
            (config.occlusion_min, config.occlusion_max),
            (config.tile_min, config.tile_max),
            per_image=config.mask_per == "image",
        ),
        "crop": lambda: augmentations.Crop((config.crop_area, 1.0)),
        "colour": lambda: augmentations.Colour(config.colour_strength),
        **_AUGMENTATIONS,
    }
    parts = [made[name]() for name in names]
    return parts[0] if len(parts) == 1 else augmentations.Chain(parts)

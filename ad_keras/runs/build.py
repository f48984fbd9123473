"""From flags to the model that they describe."""

from ad_keras.compute.optimizers import FusedAdam
from ad_keras.pad import adversaries, agreement, augmentations, mixing
from ad_keras.pad.hippocampus import AssociativeHippocampus, EpisodicHippocampus, Hippocampus
from ad_keras.pad.model import PAD, SETTINGS
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


def build_model(config: Config, **parts) -> PAD:
    """The model that a configuration describes, compiled and untrained.

    Args:
        config: of a run.
        **parts: arguments of `PAD`, in place of those that the configuration describes.
    """
    names = ("image_size", "latent_dim", "base_filters", "seed", "network")
    shape = {name: getattr(config, name) for name in names} | {"dtype": config.precision}
    described = {
        "hippocampus": _hippocampus(config),
        "mixing": _MIXINGS[config.mixing](config.mix_recent, config.mix_memories),
        "perturbation": _perturbation(config, config.perturbation),
        "recovery": _agreement(config, config.recovery),
        "adversary": _ADVERSARIES[config.adversary](),
        "glimpse": _perturbation(config, config.glimpse) if config.glimpse else None,
        "agreement": _agreement(config, config.agreement),
    }
    same = {name: getattr(config, name) for name in SETTINGS}
    model = PAD(build_encoder(**shape), build_generator(**shape), **same | described | parts)
    rates = (config.encoder_learning_rate, config.generator_learning_rate)
    model.compile(*(FusedAdam(rate, config.beta_1, config.beta_2) for rate in rates))
    return model


def _hippocampus(config: Config) -> Hippocampus:
    capacity, seed = config.hippocampus_capacity, config.seed
    return {
        "last_batch": lambda: Hippocampus(config.batch_size),
        "episodic": lambda: EpisodicHippocampus(capacity, "oldest", seed),
        "reservoir": lambda: EpisodicHippocampus(capacity, "reservoir", seed),
        "associative": lambda: AssociativeHippocampus(capacity),
    }[config.hippocampus]()


def _agreement(config: Config, name: str) -> Part:
    return {
        "distance": agreement.LatentDistance,
        "contrast": lambda: agreement.Contrast(config.temperature, config.views),
        "vicreg": lambda: agreement.VICReg(views=config.views),
        "coding_rate": lambda: agreement.CodingRate(views=config.views),
    }[name]()


def _perturbation(config: Config, names: tuple[str, ...]) -> Part:
    made = {
        "occlusion": lambda: Occlusion(
            (config.occlusion_min, config.occlusion_max),
            (config.tile_min, config.tile_max),
            per_image=config.mask_per == "image",
        ),
        "crop": lambda: augmentations.Crop((config.crop_area, 1.0)),
        "colour": lambda: augmentations.Colour(config.colour_strength),
        "shift": augmentations.Shift,
        "rotation": augmentations.Rotation,
        "flip": augmentations.Flip,
        "grey": augmentations.Grey,
        "blur": augmentations.Blur,
        "noise": augmentations.Noise,
    }
    parts = [made[name]() for name in names]
    return parts[0] if len(parts) == 1 else augmentations.Chain(parts)

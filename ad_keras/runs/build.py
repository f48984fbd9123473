"""From flags to the model that they describe."""

from ad_keras.compute.optimizers import FusedAdam
from ad_keras.pad.hippocampus import Hippocampus
from ad_keras.pad.mixing import Mixing
from ad_keras.pad.model import PAD
from ad_keras.pad.networks import build_encoder, build_generator
from ad_keras.pad.perturbations import Occlusion
from ad_keras.runs.config import Config


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
    }
    described = {
        "hippocampus": Hippocampus(config.batch_size),
        "mixing": Mixing(config.mix_recent, config.mix_memories),
        "perturbation": Occlusion(
            (config.occlusion_min, config.occlusion_max),
            (config.tile_min, config.tile_max),
            per_image=config.mask_per == "image",
        ),
    }
    model = PAD(
        build_encoder(**shape),
        build_generator(**shape),
        phases=config.phases,
        reconstruction_weight=config.reconstruction_weight,
        kl_weight=config.kl_weight,
        external_weight=config.external_weight,
        recovery_weight=config.recovery_weight,
        internal_weight=config.internal_weight,
        wake_noise_variance=config.wake_noise_variance,
        nrem_memories=config.nrem_memories,
        seed=config.seed,
        **{**described, **parts},
    )
    encoder_optimizer, generator_optimizer = (
        FusedAdam(rate, beta_1=config.beta_1, beta_2=config.beta_2, epsilon=1e-8)
        for rate in (config.encoder_learning_rate, config.generator_learning_rate)
    )
    model.compile(encoder_optimizer, generator_optimizer)
    return model

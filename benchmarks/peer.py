"""Perturbed and adversarial dreaming in PyTorch: what `ad_keras` is measured against.

The same networks, mini-batches, phases, losses and optimizers, in the paper's conditions and in
four forms (`FORMS`), on the processor. It needs PyTorch: `pip install -e ".[benchmark]"`.
"""

import itertools
import time
from multiprocessing.connection import Connection

import numpy as np
import torch
from processes import peak_bytes
from torch import nn
from torch.nn import functional

from ad_keras.runs.config import CONDITIONS, Config

FORMS = {
    "plain": "float32 and PyTorch's defaults",
    "tuned": "channels_last, bfloat16 autocast, fused Adam",
    "rewritten": "tuned, and convolutions between 4x4 and 1x1 as matrix products, as ours are",
    "rewritten_float32": "rewritten, without bfloat16",
}
"""From what one writes first to the fastest found. `torch.compile` made none of them faster on a
processor, and takes half a minute; nor did flushing denormal numbers."""

_WARM_UP = 10  # steps


class _ConvolutionAsProduct(nn.Conv2d):
    """From a map as large as the kernel to 1x1."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        outputs = functional.linear(features.flatten(1), self.weight.flatten(1), self.bias)
        return outputs[:, :, None, None]


class _TransposedConvolutionAsProduct(nn.ConvTranspose2d):
    """From 1x1 to a map as large as the kernel."""

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        weight = self.weight.permute(0, 2, 3, 1)  # channels last, as the layers behind want them
        features = latents.flatten(1) @ weight.flatten(1)
        features = features.view(-1, *weight.shape[1:]).permute(0, 3, 1, 2)
        return features + self.bias[:, None, None]


class Encoder(nn.Module):
    """E and d on their shared trunk, for images [B, 3, 32, 32].

    Args:
        latent_dim: size of the latent.
        base_filters: filters of the first convolution.
        head: class of the convolutions that end it.
    """

    def __init__(self, latent_dim: int, base_filters: int, head: type[nn.Conv2d]) -> None:
        super().__init__()
        widths = (3, base_filters, 2 * base_filters, 4 * base_filters)
        layers = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.trunk = nn.Sequential(*layers)
        self.latent = head(widths[-1], latent_dim, 4)
        self.external = head(widths[-1], 1, 4)


class Generator(nn.Sequential):
    """G, from latents [B, latent_dim, 1, 1] to images [B, 3, 32, 32].

    Args:
        latent_dim: size of the latent.
        base_filters: filters in front of the last transposed convolution.
        project: class of the convolution that begins it.
    """

    def __init__(
        self, latent_dim: int, base_filters: int, project: type[nn.ConvTranspose2d]
    ) -> None:
        widths = (4 * base_filters, 2 * base_filters, base_filters, 3)
        layers = [project(latent_dim, widths[0], 4)]
        for before, after in itertools.pairwise(widths):
            layers.append(nn.LeakyReLU(0.2))
            layers.append(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1))
        super().__init__(*layers, nn.Tanh())


class Peer:
    """The model with its optimizers and its memory of the last mini-batch.

    Args:
        form: one of `FORMS`.
        latent_dim: size of the latent.
        base_filters: filters of the first convolution.
        condition: one of `ad_keras.runs.config.CONDITIONS`.
    """

    def __init__(
        self,
        form: str = "plain",
        latent_dim: int = 256,
        base_filters: int = 64,
        condition: str = "full",
    ) -> None:
        self.settings = Config(**CONDITIONS[condition])
        self.tuned = form != "plain"
        self.bfloat16 = form in ("tuned", "rewritten")
        rewritten = form in ("rewritten", "rewritten_float32")
        head = _ConvolutionAsProduct if rewritten else nn.Conv2d
        project = _TransposedConvolutionAsProduct if rewritten else nn.ConvTranspose2d
        self.encoder = Encoder(latent_dim, base_filters, head)
        self.generator = Generator(latent_dim, base_filters, project)
        for module in (*self.encoder.modules(), *self.generator.modules()):
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
        if self.tuned:
            self.encoder.to(memory_format=torch.channels_last)
            self.generator.to(memory_format=torch.channels_last)
        settings = {"lr": 2e-4, "betas": (0.5, 0.999), "fused": self.tuned or None}
        self.encoder_optimizer = torch.optim.Adam(self.encoder.parameters(), **settings)
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), **settings)
        self.remembered: torch.Tensor | None = None

    def step(
        self,
        images: torch.Tensor,
        mask: torch.Tensor,
        noise: torch.Tensor,
        wake_noise: torch.Tensor,
    ) -> dict[str, float]:
        """One cycle of wake and the condition's other phases.

        Args:
            images: [B, 3, 32, 32] in [-1, 1].
            mask: [32, 32], 1 where NREM sees the dream and 0 where it is occluded.
            noise: [B, latent_dim, 1, 1], standard normal, of the REM latents.
            wake_noise: the same, on the latents that wake reconstructs from, if the condition
                has it.

        Returns:
            The losses by the names that `ad_keras` has for them.
        """
        settings = self.settings
        if self.tuned:
            images = images.contiguous(memory_format=torch.channels_last)
        latents, losses = self._wake(images, wake_noise)
        recalled = latents if self.remembered is None else self.remembered
        self.remembered = latents
        memories = settings.mix_recent * latents + (1 - settings.mix_recent) * recalled
        mixed = settings.mix_memories * memories + (1 - settings.mix_memories) * noise
        for phase in settings.phases[1:]:
            if phase == "nrem":
                replayed = mixed if settings.nrem_memories == "mixed" else latents
                losses["nrem/recovery_loss"] = self._nrem(replayed, mask)
            else:
                losses["rem/internal_loss"] = self._rem(mixed)
        return {name: loss.item() for name, loss in losses.items()}

    def _wake(
        self, images: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        encoder, settings = self.encoder, self.settings
        self._zero_grad()
        with self._autocast():
            features = encoder.trunk(images)
            latents = encoder.latent(features)
            deviation = settings.wake_noise_variance**0.5
            rebuilt = self.generator(latents + deviation * noise if deviation else latents)
            if settings.external_weight:
                logits = encoder.external(features)
        latents = self._full(latents)
        mean, variance = latents.mean(dim=0), latents.var(dim=0)
        losses = {
            "wake/reconstruction_loss": functional.mse_loss(self._full(rebuilt), images),
            "wake/kl_loss": 0.5 * (mean**2 + variance - variance.log() - 1).mean(),
        }
        if settings.external_weight:
            losses["wake/external_loss"] = functional.softplus(-self._full(logits)).mean()
        sum(losses.values()).backward()
        self.encoder_optimizer.step()
        self.generator_optimizer.step()
        return latents.detach(), losses

    def _nrem(self, latents: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        self._zero_grad()
        with self._autocast():
            with torch.no_grad():
                dreams = self.generator(latents)
            recovered = self.encoder.latent(self.encoder.trunk(dreams * mask))
        loss = functional.mse_loss(self._full(recovered), latents)
        (self.settings.recovery_weight * loss).backward()
        self.encoder_optimizer.step()
        return loss

    def _rem(self, mixed: torch.Tensor) -> torch.Tensor:
        self._zero_grad()
        with self._autocast():
            logits = self.encoder.external(self.encoder.trunk(self.generator(mixed)))
        loss = functional.softplus(self._full(logits)).mean()
        loss.backward()
        for parameter in self.generator.parameters():
            parameter.grad.neg_()
        self.encoder_optimizer.step()
        self.generator_optimizer.step()
        return loss

    def parameters(self) -> dict[str, nn.Parameter]:
        """The weights by the names of the recordings that `agreement.py` describes."""
        found = {}
        for network, name, last in (("encoder", "conv", ["dis"]), ("generator", "tconv", [])):
            modules = [
                module
                for module in getattr(self, network).modules()
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            ]
            names = [*(f"{name}{number}" for number in range(1, 5)), *last]
            for module, layer in zip(modules, names, strict=True):
                found[f"{network}/{layer}.0.weight"] = module.weight
                found[f"{network}/{layer}.0.bias"] = module.bias
        return found

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the weights, by the same names."""
        return {
            name: weights.numpy(force=True).copy() for name, weights in self.parameters().items()
        }

    def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Takes weights over.

        Args:
            weights: by the same names.
        """
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(torch.tensor(weights[name]))

    def state(self) -> dict:
        """What training continues from exactly, with the state of PyTorch's random numbers."""
        return {
            "networks": [network.state_dict() for network in (self.encoder, self.generator)],
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "remembered": self.remembered,
            "random": torch.get_rng_state(),
        }

    def restore(self, state: dict) -> None:
        """Continues from a state.

        Args:
            state: from `state`.
        """
        for network, saved in zip((self.encoder, self.generator), state["networks"], strict=True):
            network.load_state_dict(saved)
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.remembered = state["remembered"]
        torch.set_rng_state(state["random"])

    @property
    def _optimizers(self) -> tuple[torch.optim.Adam, torch.optim.Adam]:
        return self.encoder_optimizer, self.generator_optimizer

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16)

    def _full(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.float() if self.bfloat16 else outputs

    def _zero_grad(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad()  # to None, so that what a phase does not reach is left alone


def draw(batch_size: int, latent_dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The random mask [32, 32] and both noises [batch_size, latent_dim, 1, 1] of a step."""
    tile = int(torch.randint(1, 9, ()))
    tiles = -(-32 // tile)
    visible = (torch.rand(tiles, tiles) >= torch.rand(())).float()
    mask = visible.repeat_interleave(tile, 0).repeat_interleave(tile, 1)[:32, :32]
    return mask, *torch.randn(2, batch_size, latent_dim, 1, 1)


def train_rounds(
    connection: Connection,
    form: str,
    images: int,
    batch_size: int,
    latent_dim: int,
    base_filters: int,
) -> None:
    """Trains in rounds, as `measurements.train_rounds` does."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, 3, 32, 32), np.uint8)
    pool = torch.from_numpy(pixels)
    peer = Peer(form, latent_dim, base_filters)
    steps_per_epoch = images // batch_size

    def epochs():
        while True:
            order = torch.randperm(images)
            for start in range(0, steps_per_epoch * batch_size, batch_size):
                yield pool[order[start : start + batch_size]].float().div(127.5).sub(1.0)

    totals: dict[str, float] = {}
    steps, used, started, end = -_WARM_UP, 0.0, 0.0, 0.0
    for batch in epochs():
        for name, loss in peer.step(batch, *draw(batch_size, latent_dim)).items():
            totals[name] = totals.get(name, 0.0) + loss
        steps += 1
        now = time.perf_counter()
        if steps < 0 or now < end:
            continue
        connection.send(
            {
                "steps": steps,
                "seconds": now - started,
                "processor_seconds": time.process_time() - used,
                "peak_bytes": peak_bytes(),
            }
        )
        seconds = connection.recv()
        steps, used, started = 0, time.process_time(), time.perf_counter()
        end = started + seconds

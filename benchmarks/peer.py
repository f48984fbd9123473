"""Perturbed and adversarial dreaming in PyTorch: what `ad_keras` is measured against.

The same networks, mini-batches, phases, losses and optimizers, in three forms (`FORMS`). It needs
PyTorch: `pip install -e ".[benchmark]"`.
"""

import itertools
import time
from multiprocessing.connection import Connection

import numpy as np
import torch
from processes import peak_bytes
from torch import nn
from torch.nn import functional

FORMS = {
    "plain": "float32 and PyTorch's defaults",
    "tuned": "channels_last, bfloat16 autocast, fused Adam",
    "rewritten": "tuned, and convolutions between 4x4 and 1x1 as matrix products, as ours are",
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
    """

    def __init__(self, form: str = "plain", latent_dim: int = 256, base_filters: int = 64) -> None:
        self.tuned = form != "plain"
        rewritten = form == "rewritten"
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
        self, images: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor
    ) -> dict[str, float]:
        """One cycle of wake, NREM and REM.

        Args:
            images: [B, 3, 32, 32] in [-1, 1].
            mask: [32, 32], 1 where NREM sees the dream and 0 where it is occluded.
            noise: [B, latent_dim, 1, 1], standard normal, of the REM latents.

        Returns:
            The losses by the names that `ad_keras` has for them.
        """
        encoder, generator = self.encoder, self.generator
        if self.tuned:
            images = images.contiguous(memory_format=torch.channels_last)

        self._zero_grad()
        with self._autocast():
            features = encoder.trunk(images)
            latents, logits = encoder.latent(features), encoder.external(features)
            rebuilt = generator(latents)
        latents, logits, rebuilt = self._full(latents), self._full(logits), self._full(rebuilt)
        reconstruction_loss = functional.mse_loss(rebuilt, images)
        mean, variance = latents.mean(dim=0), latents.var(dim=0)
        kl_loss = 0.5 * (mean**2 + variance - variance.log() - 1).mean()
        external_loss = functional.softplus(-logits).mean()
        (reconstruction_loss + kl_loss + external_loss).backward()
        self.encoder_optimizer.step()
        self.generator_optimizer.step()
        latents = latents.detach()
        recalled = latents if self.remembered is None else self.remembered
        self.remembered = latents

        self._zero_grad()
        with self._autocast():
            with torch.no_grad():
                dreams = generator(latents)
            recovered = encoder.latent(encoder.trunk(dreams * mask))
        latent_loss = functional.mse_loss(self._full(recovered), latents)
        latent_loss.backward()
        self.encoder_optimizer.step()

        self._zero_grad()
        mixed = 0.25 * latents + 0.25 * recalled + 0.5 * noise
        with self._autocast():
            logits = encoder.external(encoder.trunk(generator(mixed)))
        internal_loss = functional.softplus(self._full(logits)).mean()
        internal_loss.backward()
        for parameter in generator.parameters():
            parameter.grad.neg_()
        self.encoder_optimizer.step()
        self.generator_optimizer.step()

        return {
            "wake/reconstruction_loss": reconstruction_loss.item(),
            "wake/kl_loss": kl_loss.item(),
            "wake/external_loss": external_loss.item(),
            "nrem/recovery_loss": latent_loss.item(),
            "rem/internal_loss": internal_loss.item(),
        }

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.tuned)

    def _full(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.float() if self.tuned else outputs

    def _zero_grad(self) -> None:
        self.encoder_optimizer.zero_grad()  # gradients become None, so that what a phase does not
        self.generator_optimizer.zero_grad()  # reach is left alone


def draw(batch_size: int, latent_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The random mask [32, 32] and noise [batch_size, latent_dim, 1, 1] of a step."""
    tile = int(torch.randint(1, 9, ()))
    tiles = -(-32 // tile)
    visible = (torch.rand(tiles, tiles) >= torch.rand(())).float()
    mask = visible.repeat_interleave(tile, 0).repeat_interleave(tile, 1)[:32, :32]
    return mask, torch.randn(batch_size, latent_dim, 1, 1)


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

"""Samples of a model of gcflow with diffusers. Needs `pip install gcflow`."""

from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from gcflow.preconditioning import from_model_space
from gcflow.sampling import Sampler, image_noise


class GcflowPipeline(DiffusionPipeline):
    """One or few steps of a consistency model, as diffusers' ConsistencyModelPipeline; the PF-ODE of a denoiser."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        sigmas: tuple[float, ...] = (),
        seed: int = 0,
        latents: Tensor | None = None,
        heun_steps: int = 18,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images, in [0, 1] for output_type "pt" [B, C, H, W] and "np" [B, H, W, C].

        Args:
            batch_size: number of images.
            sigmas: noise levels between steps, descending; none for one step.
            seed: image n of it is that of `gcflow sample --seed`.
            latents: standard normal noise [B, C, H, W] of the first step, instead of the seed's.
            heun_steps: levels of noise of a denoiser.
            output_type: "pil", "np" or "pt".
            return_dict: whether the images come in an ImagePipelineOutput, else in a tuple.
        """
        model, config = self.unet.model, self.unet.config
        name = "heun" if config.denoiser else "consistency"
        sampler = Sampler(name, tuple(sigmas), heun_steps, config.boundary)

        def noise(step: int) -> Tensor:
            return image_noise(seed, range(batch_size), self.unet.spec.shape, step).to(self.unet.device)

        first = noise(0) if latents is None else latents.to(self.unet.device)
        stored = from_model_space(sampler.draw(model, first, noise), model.process, torch.uint8)
        images: Any = stored.float() / 255
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).cpu().numpy().astype(np.float32)
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

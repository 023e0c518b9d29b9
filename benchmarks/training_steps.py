"""A training step of one architecture as each library takes it, on one batch.

Each function here gives a function of nothing that takes one step and gives its loss: forward,
softmax cross-entropy, backward, gradients clipped to the global norm 1, AdamW.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from racing import Step
from vitkit.data.pipeline import Batch
from vitkit.data.transforms import Preprocessing
from vitkit.models.vit import VisionTransformer, ViTConfig
from vitkit.training.config import OptimizerConfig, TrainConfig
from vitkit.training.parallel import Engine
from vitkit.training.precision import Precision
from vitkit.training.step import Setup, fresh_state, train_step

RATE, DECAY = 1e-4, 0.1


@dataclass(frozen=True)
class Case:
    """What all rows train."""

    net: ViTConfig
    pixels: Tensor  # uint8 (B, 3, H, W), on the device
    labels: Tensor  # int64 (B,)

    @property
    def images(self) -> Tensor:
        """float32, as a net takes them; a copy for each row."""
        return self.pixels.float() / 127.5 - 1


@dataclass(frozen=True)
class Row:
    name: str
    precision: str
    make: Callable[[Case], Step]
    needs: tuple[str, ...] = ()
    # What the library's own training sets on CUDA: TF32 for the products left in float32, and
    # convolutions chosen by trial. Both are settings of the process, so each row brings its own.
    tf32: bool = False
    trial_convolutions: bool = False

    def missing(self) -> list[str]:
        return [name for name in self.needs if find_spec(name) is None]

    def step(self, case: Case) -> Step:
        torch.manual_seed(0)
        self.settle(case)  # before the net is made: timm and torch.compile read settings
        step = self.make(case)

        def settled() -> Tensor:
            self.settle(case)
            return step()

        return settled

    def settle(self, case: Case) -> None:
        cuda = case.pixels.device.type == "cuda"
        torch.set_float32_matmul_precision("high" if cuda and self.tf32 else "highest")
        torch.backends.cudnn.benchmark = self.trial_convolutions


def vitkit_step(
    net_config: ViTConfig, precision: str, compiled: bool, images: Tensor, labels: Tensor
) -> Step:
    """The training loop's own step; the images are uint8, and normalising them is part of it."""
    size = net_config.image_size
    engine = Engine(
        images.device, Precision(precision, "as asked for"), torch.get_num_threads(), compiled
    )
    optimizer = OptimizerConfig(learning_rate=RATE, weight_decay=DECAY)
    config = TrainConfig(image_size=size, batch_size=len(labels), optimizer=optimizer)
    setup = Setup(config, 1, engine, Preprocessing.direct(size))
    state = fresh_state(VisionTransformer(net_config), config, engine)
    batch = Batch(images, labels)

    def step() -> Tensor:
        loss, _ = train_step(setup, state, batch, RATE)
        state.step += 1
        return loss

    return step


def vitkit_row(case: Case, precision: str, compiled: bool) -> Step:
    return vitkit_step(case.net, precision, compiled, case.pixels, case.labels)


def timm_row(case: Case, precision: str, tuned: bool = False, fused_attention: bool = True) -> Step:
    """As its train script steps; tuned: --torchcompile and a fused optimizer on top."""
    from timm.layers import set_fused_attn
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
    from timm.optim import create_optimizer_v2

    config = case.net
    set_fused_attn(fused_attention)  # read when a block is made
    net = TimmVisionTransformer(
        img_size=config.image_size, patch_size=config.patch, num_classes=config.classes,
        embed_dim=config.width, depth=config.depth, num_heads=config.heads,
        mlp_ratio=config.mlp_width / config.width, act_layer="gelu_tanh",
    ).to(case.pixels.device)  # fmt: skip
    further = {"fused": True} if tuned else {}
    optimizer = create_optimizer_v2(net, opt="adamw", lr=RATE, weight_decay=DECAY, **further)
    return torch_step(torch.compile(net) if tuned else net, optimizer, case, precision)


def torchvision_row(case: Case, precision: str) -> Step:
    """As its reference script steps; its net has the erf GELU, which is cheaper than tanh's."""
    from torchvision.models.vision_transformer import VisionTransformer as TheirVisionTransformer

    config = case.net
    net = TheirVisionTransformer(
        config.image_size[0], config.patch, config.depth, config.heads, config.width,
        config.mlp_width, num_classes=config.classes,
    ).to(case.pixels.device)  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    return torch_step(net, optimizer, case, precision)


def torch_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, case: Case, precision: str
) -> Step:
    images, labels = case.images, case.labels
    parameters = list(net.parameters())
    net.train()

    def step() -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss.detach()

    return step


def transformers_row(case: Case, precision: str) -> Step:
    """What transformers.Trainer does between two batches, with its default optimizer."""
    from transformers import Trainer, TrainingArguments, ViTForImageClassification
    from transformers import ViTConfig as TheirConfig

    config = case.net
    net = ViTForImageClassification(TheirConfig(
        hidden_size=config.width, num_hidden_layers=config.depth, image_size=config.image_size,
        num_attention_heads=config.heads, intermediate_size=config.mlp_width,
        patch_size=config.patch, hidden_act="gelu_pytorch_tanh", layer_norm_eps=config.norm_eps,
        num_labels=config.classes,
    ))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, bf16=precision == "bf16", use_cpu=case.pixels.device.type == "cpu",
            per_device_train_batch_size=len(case.labels), learning_rate=RATE, weight_decay=DECAY,
            max_grad_norm=1.0, report_to="none",
        )  # fmt: skip
        trainer = Trainer(net, arguments)
    trainer.create_optimizer()
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.current_gradient_accumulation_steps = 1  # as its loop over an epoch sets it
    inputs = {"pixel_values": case.images, "labels": case.labels}

    def step() -> Tensor:
        loss = trainer.training_step(model, inputs)
        trainer.accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
        optimizer.step()
        model.zero_grad()
        return loss

    return step


def flax_row(case: Case) -> Step:
    from flax_vit import flax_step

    return flax_step(case.net, case.images, case.labels)


def row(name: str, make: Callable[..., Step], precision: str, needs: tuple[str, ...] = (),
        tf32: bool = False, trial_convolutions: bool = False, **options: bool) -> Row:  # fmt: skip
    make = partial(make, precision=precision, **options)
    return Row(name, precision, make, needs, tf32, trial_convolutions)


THEIRS = {"tf32": True, "trial_convolutions": True}  # timm's train script
REFERENCE = {"needs": ("torchvision",), "trial_convolutions": True}  # torchvision's
TRAINER = ("transformers", "accelerate")
ROWS = (
    row("vitkit bf16 compiled", vitkit_row, "bf16", tf32=True, compiled=True),
    row("vitkit bf16 eager", vitkit_row, "bf16", tf32=True, compiled=False),
    row("vitkit fp32 compiled", vitkit_row, "fp32", compiled=True),
    row("vitkit fp32 eager", vitkit_row, "fp32", compiled=False),
    row("timm fp32 eager (its default)", timm_row, "fp32", ("timm",), **THEIRS),
    row("timm bf16 eager", timm_row, "bf16", ("timm",), **THEIRS),
    row("timm bf16 compiled", timm_row, "bf16", ("timm",), **THEIRS, tuned=True),
    row("timm bf16 compiled, plain attention", timm_row, "bf16", ("timm",), **THEIRS, tuned=True,
        fused_attention=False),
    row("transformers bf16 eager", transformers_row, "bf16", TRAINER),
    row("transformers fp32 eager", transformers_row, "fp32", TRAINER),
    row("torchvision fp32 eager", torchvision_row, "fp32", **REFERENCE),
    row("torchvision bf16 eager", torchvision_row, "bf16", **REFERENCE),
    Row("flax bf16 jitted", "bf16", flax_row, ("jax", "flax", "optax")),
)  # fmt: skip

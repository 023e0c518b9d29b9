"""Well-known published weights by name: where they are, for which net, and how good they are."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any

from vitkit.data.transforms import HALF, Preprocessing

# Where the files are, and what states the accuracy.
VIT_MODELS = "https://storage.googleapis.com/vit_models"
BIT_MODELS = "https://storage.googleapis.com/bit_models"
TORCHVISION = "https://download.pytorch.org/models"
META = "https://dl.fbaipublicfiles.com"
T2T_RELEASES = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main"

BUCKET = "vision_transformer: vit_jax.ipynb"  # google-research/vision_transformer
README = "vision_transformer: README.md"
COLAB = "vision_transformer: vit_jax_augreg.ipynb"
TABLE5 = "arXiv 2010.11929: Table 5"

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std
ZERO = "pre-trained on ImageNet-21k; its head is all zeros"  # vision_transformer, issue 10
I21K = "pre-trained on ImageNet-21k"
NO_HEAD = "no head"
SWAG = "pre-trained by SWAG, whose licence holds"

AUGREG = {  # of each net the file with the best pre-training (README.md, and COLAB for B/8)
    "ViT-Ti/16": "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0",
    "ViT-S/32": "S_32-i21k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0",
    "ViT-S/16": "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0",
    "ViT-B/32": "B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0",
    "ViT-B/16": "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0",
    "ViT-B/8": "B_8-i21k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0",
    "ViT-L/16": "L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0",
    "R+ViT-Ti/16": "R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0",
    "R26+ViT-S/32": "R26_S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0",
    "R50+ViT-L/32": "R50_L_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1",
}


@dataclass(frozen=True)
class Published:
    """Weights that someone publishes."""

    model: str  # of vitkit.models.variants.VARIANTS
    where: str  # "https://..." of the file, or "hf:owner/name"
    preprocessing: Preprocessing  # the publisher's evaluation, at the size the weights are for
    source: str  # where the accuracy stands, or the file where there is none
    accuracy: float | None = None  # ImageNet top-1, a share; None where the source has none
    note: str = ""  # what else a user has to know


def row_of(text: str) -> Published | None:
    """The row by its name, or by its `where` ("hf:owner/name@revision" too); None for others."""
    if text in PUBLISHED:
        return PUBLISHED[text]
    place = text.split("@")[0] if text.startswith("hf:") else text
    return next((row for row in PUBLISHED.values() if row.where == place), None)


def published_rows(model: str | None = None) -> list[dict[str, Any]]:
    """The table as plain values, to print or as JSON; those of one net where `model` is given."""
    return [
        {
            "name": name, "model": row.model, "image_size": row.preprocessing.image_size,
            "accuracy": row.accuracy, "where": row.where, "source": row.source, "note": row.note,
        }
        for name, row in PUBLISHED.items() if model in (None, row.model)
    ]  # fmt: skip


# The families: what their rows have in common.


def direct(side: int, antialias: bool = False) -> Preprocessing:
    """Straight to a square, pixels -1..1: vision_transformer's and big_transfer's input pipelines.

    With antialias it is Pillow's resize, as of Hugging Face's ViTImageProcessor.
    """
    return Preprocessing((side, side), antialias=antialias)


def cropped(
    side: int, before: int, interpolation: Any = "bicubic", mean_std: Any = IMAGENET
) -> Preprocessing:
    """Pillow's resize of the shorter side to `before`, then the middle."""
    mean, std = mean_std
    return Preprocessing(
        (side, side), "shorter-side", before, interpolation, antialias=True,
        rounding="torchvision", mean=mean, std=std,
    )  # fmt: skip


def pretrained(model: str, file: str) -> Published:
    """The paper's, and nets that its authors added later."""
    return Published(model, f"{VIT_MODELS}/imagenet21k/{file}", direct(224), BUCKET, None, ZERO)


def finetuned(
    model: str, file: str, side: int, accuracy: float | None = None, source: str = BUCKET
) -> Published:
    where = f"{VIT_MODELS}/imagenet21k+imagenet2012/{file}"
    return Published(model, where, direct(side), source, accuracy)


def augreg(
    model: str, tuned: str = "", side: int = 224, accuracy: float | None = None
) -> Published:
    """AugReg (arXiv 2106.10270): pre-trained, or fine-tuned on ImageNet with this learning rate."""
    file = AUGREG[model] + (f"--imagenet2012-steps_20k-lr_{tuned}-res_{side}" if tuned else "")
    return Published(
        model, f"{VIT_MODELS}/augreg/{file}.npz", direct(side),
        COLAB if model == "ViT-B/8" else README, accuracy, "" if tuned else I21K,
    )  # fmt: skip


def bit(model: str, file: str, accuracy: float | None = None) -> Published:
    """big_transfer; where not fine-tuned at 480 pixels, big_vision's evaluation of its BiT."""
    tuned = file.endswith("ILSVRC2012.npz")
    preprocessing = direct(480) if tuned else Preprocessing.small_crop((224, 224), 256)
    note = I21K if file.startswith("BiT-M") and not tuned else ""
    source = "big_transfer: README.md"
    return Published(model, f"{BIT_MODELS}/{file}", preprocessing, source, accuracy, note)


def torchvision(
    model: str, file: str, preprocessing: Preprocessing, accuracy: float, note: str = ""
) -> Published:
    source = "torchvision: Weights.meta"
    return Published(model, f"{TORCHVISION}/{file}.pth", preprocessing, source, accuracy, note)


def torchvision_vit(model: str, file: str, before: int, accuracy: float) -> Published:
    return torchvision(model, file, cropped(224, before, "bilinear"), accuracy)


def swag(model: str, file: str, side: int, accuracy: float) -> Published:
    """SWAG (arXiv 2201.08371), fine-tuned on ImageNet."""
    return torchvision(model, file, cropped(side, side), accuracy, SWAG)


def efficientnet(
    size: str, file: str, side: int, before: int, accuracy: float, interpolation: str = "bicubic"
) -> Published:
    file = f"efficientnet_{size.lower()}{file}"
    return torchvision(f"EfficientNet-{size}", file, cropped(side, before, interpolation), accuracy)


def deit(model: str, file: str, side: int, accuracy: float) -> Published:
    preprocessing = cropped(side, floor(side / 0.875))  # deit: datasets.py, main.py
    source = "deit: README_deit.md"
    return Published(model, f"{META}/deit/deit_{file}.pth", preprocessing, source, accuracy)


def dinov2(model: str, name: str, linear: str) -> Published:
    """At 518 pixels, the size of the file's positions, as timm has it; no resize of them is due."""
    file = f"{name.removesuffix('_reg4')}/{name}_pretrain.pth"
    note = f"{NO_HEAD}; a linear classifier on its features: {linear}"
    return Published(
        model, f"{META}/dinov2/{file}", cropped(518, 518), "dinov2: README.md", None, note
    )


def mae(model: str, file: str, accuracy: float | None = None) -> Published:
    preprocessing = cropped(224, 256)  # mae: util/datasets.py
    source = "mae: README.md" if accuracy is None else "mae: FINETUNE.md"
    note = "CC BY-NC 4.0" if accuracy else f"{NO_HEAD}; CC BY-NC 4.0"
    return Published(model, f"{META}/mae/{file}", preprocessing, source, accuracy, note)


def t2t(model: str, file: str, accuracy: float, side: int = 224) -> Published:
    preprocessing = cropped(side, floor(side / 0.9))  # T2T-ViT: models/t2t_vit.py
    source = "T2T-ViT: README.md"
    return Published(model, f"{T2T_RELEASES}/{file}", preprocessing, source, accuracy)


def timm(model: str, name: str, side: int, accuracy: float) -> Published:
    """Pre-trained on ImageNet-21k, fine-tuned on ImageNet."""
    before = side if side == 384 else floor(side / 0.9)  # crop_pct 1.0 and 0.9
    preprocessing = cropped(side, before, mean_std=(HALF, HALF))
    where = f"hf:timm/{name}_in21k_ft_in1k"
    source = "pytorch-image-models: results/results-imagenet.csv"
    return Published(model, where, preprocessing, source, accuracy)


def hf(model: str, name: str, preprocessing: Preprocessing, note: str = "") -> Published:
    return Published(model, f"hf:{name}", preprocessing, f"huggingface.co/{name}", None, note)


def hf_vit(model: str, name: str, side: int, note: str = "") -> Published:
    return hf(model, f"google/{name}", direct(side, antialias=True), note)


def hf_dinov2(model: str, name: str) -> Published:
    """With DINOv2's linear classifier; 518 of 592 pixels is its 224 of 256 at the file's size."""
    return hf(model, f"facebook/{name}-imagenet1k-1-layer", cropped(518, 592))


# fmt: off
PUBLISHED = {
    # The paper's, pre-trained on ImageNet-21k, and fine-tuned on ImageNet (i1k).
    "vit-b32-i21k": pretrained("ViT-B/32", "ViT-B_32.npz"),
    "vit-b16-i21k": pretrained("ViT-B/16", "ViT-B_16.npz"),
    "vit-b8-i21k": pretrained("ViT-B/8", "ViT-B_8.npz"),
    "vit-l32-i21k": pretrained("ViT-L/32", "ViT-L_32.npz"),
    "vit-l16-i21k": pretrained("ViT-L/16", "ViT-L_16.npz"),
    "vit-h14-i21k": pretrained("ViT-H/14", "ViT-H_14.npz"),
    "r26-vit-b32-i21k": pretrained("R26+ViT-B/32", "R26+ViT-B_32.npz"),
    "r50-vit-b16-i21k": pretrained("R50+ViT-B/16", "R50+ViT-B_16.npz"),
    "r50-vit-l32-i21k": pretrained("R50+ViT-L/32", "R50+ViT-L_32.npz"),
    "vit-b32-i21k-i1k-384": finetuned("ViT-B/32", "ViT-B_32.npz", 384, 0.8128, TABLE5),
    "vit-b16-i21k-i1k-384": finetuned("ViT-B/16", "ViT-B_16.npz", 384, 0.8397, TABLE5),
    "vit-b16-i21k-i1k-224": finetuned("ViT-B/16", "ViT-B_16-224.npz", 224, 0.812, README),
    "vit-b8-i21k-i1k-384": finetuned("ViT-B/8", "ViT-B_8.npz", 384),
    "vit-l32-i21k-i1k-384": finetuned("ViT-L/32", "ViT-L_32.npz", 384, 0.8099, TABLE5),
    "vit-l16-i21k-i1k-384": finetuned("ViT-L/16", "ViT-L_16.npz", 384, 0.8515, TABLE5),
    "vit-l16-i21k-i1k-224": finetuned("ViT-L/16", "ViT-L_16-224.npz", 224, 0.827, README),
    "r50-vit-b16-i21k-i1k-384": finetuned("R50+ViT-B/16", "R50+ViT-B_16.npz", 384),
    # AugReg.
    "vit-ti16-augreg-i21k": augreg("ViT-Ti/16"),
    "vit-s32-augreg-i21k": augreg("ViT-S/32"),
    "vit-s16-augreg-i21k": augreg("ViT-S/16"),
    "vit-b32-augreg-i21k": augreg("ViT-B/32"),
    "vit-b16-augreg-i21k": augreg("ViT-B/16"),
    "vit-b8-augreg-i21k": augreg("ViT-B/8"),
    "vit-l16-augreg-i21k": augreg("ViT-L/16"),
    "r-vit-ti16-augreg-i21k": augreg("R+ViT-Ti/16"),
    "r26-vit-s32-augreg-i21k": augreg("R26+ViT-S/32"),
    "r50-vit-l32-augreg-i21k": augreg("R50+ViT-L/32"),
    "vit-ti16-augreg-i21k-i1k-384": augreg("ViT-Ti/16", "0.03", 384, 0.7822),
    "vit-s32-augreg-i21k-i1k-384": augreg("ViT-S/32", "0.01", 384, 0.7958),
    "vit-s16-augreg-i21k-i1k-384": augreg("ViT-S/16", "0.03", 384, 0.8373),
    "vit-b32-augreg-i21k-i1k-384": augreg("ViT-B/32", "0.01", 384, 0.8359),
    "vit-b16-augreg-i21k-i1k-384": augreg("ViT-B/16", "0.03", 384, 0.8549),
    "vit-b8-augreg-i21k-i1k-224": augreg("ViT-B/8", "0.03", 224, 0.85578),
    "vit-l16-augreg-i21k-i1k-384": augreg("ViT-L/16", "0.01", 384, 0.8559),
    "r-vit-ti16-augreg-i21k-i1k-384": augreg("R+ViT-Ti/16", "0.03", 384, 0.7540),
    "r26-vit-s32-augreg-i21k-i1k-384": augreg("R26+ViT-S/32", "0.01", 384, 0.8385),
    "r50-vit-l32-augreg-i21k-i1k-384": augreg("R50+ViT-L/32", "0.01", 384, 0.8599),
    # Big Transfer: S on ImageNet, M on ImageNet-21k, M fine-tuned on ImageNet, distilled.
    "bit-s-r50x1": bit("BiT-R50x1", "BiT-S-R50x1.npz"),
    "bit-s-r50x3": bit("BiT-R50x3", "BiT-S-R50x3.npz"),
    "bit-s-r101x1": bit("BiT-R101x1", "BiT-S-R101x1.npz"),
    "bit-s-r101x3": bit("BiT-R101x3", "BiT-S-R101x3.npz"),
    "bit-s-r152x4": bit("BiT-R152x4", "BiT-S-R152x4.npz"),
    "bit-m-r50x1": bit("BiT-R50x1", "BiT-M-R50x1.npz"),
    "bit-m-r50x3": bit("BiT-R50x3", "BiT-M-R50x3.npz"),
    "bit-m-r101x1": bit("BiT-R101x1", "BiT-M-R101x1.npz"),
    "bit-m-r101x3": bit("BiT-R101x3", "BiT-M-R101x3.npz"),
    "bit-m-r152x2": bit("BiT-R152x2", "BiT-M-R152x2.npz"),
    "bit-m-r152x4": bit("BiT-R152x4", "BiT-M-R152x4.npz"),
    "bit-m-r50x1-i1k-480": bit("BiT-R50x1", "BiT-M-R50x1-ILSVRC2012.npz"),
    "bit-m-r50x3-i1k-480": bit("BiT-R50x3", "BiT-M-R50x3-ILSVRC2012.npz"),
    "bit-m-r101x1-i1k-480": bit("BiT-R101x1", "BiT-M-R101x1-ILSVRC2012.npz"),
    "bit-m-r101x3-i1k-480": bit("BiT-R101x3", "BiT-M-R101x3-ILSVRC2012.npz"),
    "bit-m-r152x2-i1k-480": bit("BiT-R152x2", "BiT-M-R152x2-ILSVRC2012.npz"),
    "bit-m-r152x4-i1k-480": bit("BiT-R152x4", "BiT-M-R152x4-ILSVRC2012.npz"),
    "bit-r50x1-distilled": bit("BiT-R50x1", "distill/R50x1_224.npz", 0.828),
    # torchvision.
    "torchvision-vit-b32": torchvision_vit("ViT-B/32", "vit_b_32-d86f8d99", 256, 0.75912),
    "torchvision-vit-b16": torchvision_vit("ViT-B/16", "vit_b_16-c867db91", 256, 0.81072),
    "torchvision-vit-l32": torchvision_vit("ViT-L/32", "vit_l_32-c7638314", 256, 0.76972),
    "torchvision-vit-l16": torchvision_vit("ViT-L/16", "vit_l_16-852ce7e3", 242, 0.79662),
    "torchvision-vit-b16-swag-384": swag("ViT-B/16", "vit_b_16_swag-9ac1b537", 384, 0.85304),
    "torchvision-vit-l16-swag-512": swag("ViT-L/16", "vit_l_16_swag-4f3808c9", 512, 0.88064),
    "torchvision-vit-h14-swag-518": swag("ViT-H/14", "vit_h_14_swag-80465313", 518, 0.88552),
    "torchvision-efficientnet-b0": efficientnet("B0", "_rwightman-7f5810bc", 224, 256, 0.77692),
    "torchvision-efficientnet-b1": efficientnet("B1", "-c27df63c", 240, 255, 0.79838, "bilinear"),
    "torchvision-efficientnet-b2": efficientnet("B2", "_rwightman-c35c1473", 288, 288, 0.80608),
    "torchvision-efficientnet-b3": efficientnet("B3", "_rwightman-b3899882", 300, 320, 0.82008),
    "torchvision-efficientnet-b4": efficientnet("B4", "_rwightman-23ab8bcd", 380, 384, 0.83384),
    "torchvision-efficientnet-b5": efficientnet("B5", "_lukemelas-1a07897c", 456, 456, 0.83444),
    "torchvision-efficientnet-b6": efficientnet("B6", "_lukemelas-24a108a5", 528, 528, 0.84008),
    "torchvision-efficientnet-b7": efficientnet("B7", "_lukemelas-c5b4e57e", 600, 600, 0.84122),
    # DeiT (arXiv 2012.12877).
    "deit-ti16": deit("ViT-Ti/16", "tiny_patch16_224-a1311bcf", 224, 0.72202),
    "deit-s16": deit("ViT-S/16", "small_patch16_224-cd65a155", 224, 0.79854),
    "deit-b16": deit("ViT-B/16", "base_patch16_224-b5f2ef4d", 224, 0.81846),
    "deit-b16-384": deit("ViT-B/16", "base_patch16_384-8de9b5d1", 384, 0.82890),
    "deit-ti16-distilled": deit("ViT-Ti/16", "tiny_distilled_patch16_224-b40b3cf7", 224, 0.74476),
    "deit-s16-distilled": deit("ViT-S/16", "small_distilled_patch16_224-649709d9", 224, 0.81164),
    "deit-b16-distilled": deit("ViT-B/16", "base_distilled_patch16_224-df68dfff", 224, 0.83372),
    "deit-b16-distilled-384": deit("ViT-B/16", "base_distilled_patch16_384-d0272ac0", 384, 0.85224),
    # DINOv2 (arXiv 2304.07193), and with registers (arXiv 2309.16588).
    "dinov2-s14": dinov2("DINOv2-S/14", "dinov2_vits14", "81.1 %"),
    "dinov2-b14": dinov2("DINOv2-B/14", "dinov2_vitb14", "84.5 %"),
    "dinov2-l14": dinov2("DINOv2-L/14", "dinov2_vitl14", "86.3 %"),
    "dinov2-g14": dinov2("DINOv2-g/14", "dinov2_vitg14", "86.5 %"),
    "dinov2-s14-reg": dinov2("DINOv2-S/14", "dinov2_vits14_reg4", "80.9 %"),
    "dinov2-b14-reg": dinov2("DINOv2-B/14", "dinov2_vitb14_reg4", "84.6 %"),
    "dinov2-l14-reg": dinov2("DINOv2-L/14", "dinov2_vitl14_reg4", "86.7 %"),
    "dinov2-g14-reg": dinov2("DINOv2-g/14", "dinov2_vitg14_reg4", "87.1 %"),
    # MAE (arXiv 2111.06377): the encoder, and fine-tuned on ImageNet.
    "mae-b16": mae("ViT-B/16", "pretrain/mae_pretrain_vit_base.pth"),
    "mae-l16": mae("ViT-L/16", "pretrain/mae_pretrain_vit_large.pth"),
    "mae-h14": mae("ViT-H/14", "pretrain/mae_pretrain_vit_huge.pth"),
    "mae-b16-i1k": mae("ViT-B/16", "finetune/mae_finetuned_vit_base.pth", 0.83664),
    "mae-l16-i1k": mae("ViT-L/16", "finetune/mae_finetuned_vit_large.pth", 0.85952),
    "mae-h14-i1k": mae("ViT-H/14", "finetune/mae_finetuned_vit_huge.pth", 0.86928),
    # Tokens-to-token (arXiv 2101.11986).
    "t2t-vit-14": t2t("T2T-ViT-14", "81.5_T2T_ViT_14.pth.tar", 0.815),
    "t2t-vit-14-384": t2t("T2T-ViT-14", "83.3_T2T_ViT_14.pth.tar", 0.833, 384),
    "t2t-vit-19": t2t("T2T-ViT-19", "81.9_T2T_ViT_19.pth.tar", 0.819),
    "t2t-vit-24": t2t("T2T-ViT-24", "82.3_T2T_ViT_24.pth.tar", 0.823),
    "t2t-vit_t-14": t2t("T2T-ViT_t-14", "81.7_T2T_ViTt_14.pth.tar", 0.817),
    "t2t-vit_t-19": t2t("T2T-ViT_t-19", "82.4_T2T_ViTt_19.pth.tar", 0.824),
    "t2t-vit_t-24": t2t("T2T-ViT_t-24", "82.6_T2T_ViTt_24.pth.tar", 0.826),
    # timm and Hugging Face.
    "timm-vit-ti16": timm("ViT-Ti/16", "vit_tiny_patch16_224.augreg", 224, 0.75452),
    "timm-vit-s16": timm("ViT-S/16", "vit_small_patch16_224.augreg", 224, 0.81402),
    "timm-vit-b32": timm("ViT-B/32", "vit_base_patch32_224.augreg", 224, 0.80732),
    "timm-vit-b16": timm("ViT-B/16", "vit_base_patch16_224.augreg2", 224, 0.85108),
    "timm-vit-b16-384": timm("ViT-B/16", "vit_base_patch16_384.augreg", 384, 0.86010),
    "timm-vit-b8": timm("ViT-B/8", "vit_base_patch8_224.augreg2", 224, 0.86252),
    "timm-vit-l16": timm("ViT-L/16", "vit_large_patch16_224.augreg", 224, 0.85856),
    "timm-vit-l16-384": timm("ViT-L/16", "vit_large_patch16_384.augreg", 384, 0.87096),
    "hf-vit-b16-224": hf_vit("ViT-B/16", "vit-base-patch16-224", 224),
    "hf-vit-b16-384": hf_vit("ViT-B/16", "vit-base-patch16-384", 384),
    "hf-vit-l16-224": hf_vit("ViT-L/16", "vit-large-patch16-224", 224),
    "hf-vit-b16-i21k": hf_vit("ViT-B/16", "vit-base-patch16-224-in21k", 224, NO_HEAD),
    "hf-vit-h14-i21k": hf_vit("ViT-H/14", "vit-huge-patch14-224-in21k", 224, NO_HEAD),
    "hf-dinov2-s14-i1k": hf_dinov2("DINOv2-S/14", "dinov2-small"),
    "hf-dinov2-b14-i1k": hf_dinov2("DINOv2-B/14", "dinov2-base"),
    "hf-dinov2-l14-i1k": hf_dinov2("DINOv2-L/14", "dinov2-large"),
    "hf-dinov2-g14-i1k": hf_dinov2("DINOv2-g/14", "dinov2-giant"),
}
# fmt: on

"""Reference tensors for the towers that `golden/` lacks: SigLIP, CLIP as OpenCLIP sets it (gelu), and those of the embedded base.

    python recipe/golden_features.py --seed 1 --golden golden --base base --out features/tests/golden

writes a tiny SigLIP folder with random weights, `fixtures/*.safetensors` with what transformers computes from it, from
`golden/tiny-clip` under other settings and from the CLIP and the style tower of the embedded base on their own weights, and
`fixtures/manifest.json` with the float32 noise of each tensor.
"""

import argparse
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

TEXTS = [
    "a red house in a field",
    "Two boats, at night!",
    "a painting of the sea at night with two small boats and a yellow moon above a bridge over the river",
]
WORLD_TEXTS = ["a red house in a field", "shs, a boat on the sea, hatched, dark paper", "an orange cat at night, qwxyz"]
TOKENS = 16
SIGLIP = {
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": TOKENS,
        "vocab_size": 120,
        "projection_size": 32,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 30,
        "patch_size": 7,
    },
}
# OpenCLIP's activation, and an epsilon that a tower which ignores the setting would not meet.
OPENCLIP = {"hidden_act": "gelu", "layer_norm_eps": 1e-3}


def tokenizer() -> PreTrainedTokenizerFast:
    """A sentencepiece-like unigram pipeline as SigLIP's `tokenizer.json` has it: no capitals, no punctuation, `</s>`."""
    pipeline = Tokenizer(models.Unigram())
    pipeline.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s]"), ""), normalizers.Strip()]
    )
    pipeline.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=SIGLIP["text_config"]["vocab_size"], special_tokens=special, unk_token="<unk>"
    )
    pipeline.train_from_iterator(TEXTS, trainer)
    pipeline.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=pipeline, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TOKENS
    )


def fill(model: torch.nn.Module, seed: int) -> None:
    """Draws every weight from its name and the seed alone."""
    for name, parameter in model.named_parameters():
        values = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
        drawn = values.standard_normal(tuple(parameter.shape)) * (0.3 if parameter.dim() > 1 else 0.1)
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = torch.from_numpy(centre + drawn).float()


def unit(features) -> torch.Tensor:
    features = getattr(features, "pooler_output", features)
    return features / features.norm(dim=-1, keepdim=True)


def embed(model, pixels: torch.Tensor, ids: torch.Tensor) -> dict:
    """Features of both towers, each of length 1."""
    with torch.no_grad():
        return {
            "image_embeds": unit(model.get_image_features(pixel_values=pixels)),
            "text_embeds": unit(model.get_text_features(input_ids=ids)),
        }


def topic(model, pixels: torch.Tensor, ids: torch.Tensor) -> tuple:
    """Inputs and float32 outputs, and the largest difference of each output from the same in float64."""
    single = embed(model, pixels, ids)
    double = embed(model.double(), pixels.double(), ids)
    noise = {name: {"noise": (double[name] - single[name].double()).abs().max().item()} for name in single}
    return {"pixel_values": pixels, "ids": ids, **single}, noise


def siglip(seed: int, image: Image.Image, folder: Path) -> tuple:
    model = SiglipModel(SiglipConfig(**SIGLIP)).eval()
    fill(model, seed)
    model.save_pretrained(folder)
    side = SIGLIP["vision_config"]["image_size"]
    processor = SiglipImageProcessorPil(size={"height": side, "width": side})
    processor.save_pretrained(folder)
    words = tokenizer()
    words.save_pretrained(folder)
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    ids = words(TEXTS, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")["input_ids"]
    return topic(model, pixels, ids)


def openclip(golden: Path) -> tuple:
    config = CLIPConfig.from_pretrained(golden / "tiny-clip")
    for tower in (config.text_config, config.vision_config):
        for name, value in OPENCLIP.items():
            setattr(tower, name, value)
    model = CLIPModel.from_pretrained(golden / "tiny-clip", config=config).eval()
    given = load_file(golden / "fixtures" / "clip.safetensors")
    return topic(model, given["pixel_values"], given["ids"])


def smooth(seed: int, side: int) -> torch.Tensor:
    """Three made-up images [3, 3, side, side] in -1..1: coarse noise, enlarged."""
    coarse = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=side, mode="bilinear").clamp(-1, 1)


def embedded_clip(seed: int, base: Path) -> tuple:
    model = CLIPModel.from_pretrained(base / "clip", dtype=torch.float32).eval()
    words = CLIPTokenizer.from_pretrained(base / "clip")
    ids = words(WORLD_TEXTS, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    return topic(model, smooth(seed, model.config.vision_config.image_size), ids)


def embedded_style(seed: int, base: Path) -> tuple:
    tower = CLIPVisionModelWithProjection.from_pretrained(base / "style", dtype=torch.float32).eval()
    pixels = smooth(seed, tower.config.image_size)
    with torch.no_grad():
        single = unit(tower(pixel_values=pixels).image_embeds)
        double = unit(tower.double()(pixel_values=pixels.double()).image_embeds)
    noise = (double - single.double()).abs().max().item()
    return {"pixel_values": pixels, "image_embeds": single}, {"image_embeds": {"noise": noise}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--golden", type=Path, default=Path("golden"))
    parser.add_argument("--base", type=Path, default=Path("base"))
    parser.add_argument("--out", type=Path, default=Path("features/tests/golden"))
    options = parser.parse_args()
    fixtures = options.out / "fixtures"
    fixtures.mkdir(parents=True, exist_ok=True)
    image = Image.open(options.golden / "fixtures" / "picture.png").convert("RGB")
    made = {
        "siglip": siglip(options.seed, image, options.out / "tiny-siglip"),
        "openclip": openclip(options.golden),
        "embedded_clip": embedded_clip(options.seed, options.base),
        "embedded_style": embedded_style(options.seed, options.base),
    }
    facts = {"siglip": {"texts": TEXTS}, "openclip": OPENCLIP, "embedded_clip": {"texts": WORLD_TEXTS}, "embedded_style": {}}
    topics = {}
    for name, (tensors, noise) in made.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, fixtures / f"{name}.safetensors")
        topics[name] = {"tensors": noise, "facts": facts[name]}
    manifest = {"made_by": "recipe/golden_features.py", "seed": options.seed, "topics": topics}
    (fixtures / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()

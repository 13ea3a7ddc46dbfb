"""Time and memory of `catelier federate aggregate` on many adapters, beside numpy on the same files.

    python recipe/bench_aggregate.py --binary target/release/catelier --work /tmp/aggregate --seed 1
    python recipe/bench_aggregate.py --binary target/release/catelier --work /tmp/small --seed 1 \\
        --count 10000 --rank 6 --modules 4 --strategies fedavg product median

Makes adapters of the attention layers of Stable Diffusion 1.5, f32, in kohya's format, from a seed: one common part and one
of each client's own. Then it runs each strategy in a process of its own and prints seconds and the peak of its memory
(`ru_maxrss`), and numpy, which averages the factors one file after the other. At the end it compares results with numpy's:
`fedavg` by every value, `product` by how much further from the mean of the updates it is than numpy's own best of that rank.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

CONTEXT = 768
# Channels of the blocks with attention, by name.
BLOCKS = (
    [(f"down_blocks_{level}_attentions_{layer}", 320 << level) for level in range(3) for layer in range(2)]
    + [("mid_block_attentions_0", 1280)]
    + [(f"up_blocks_{level}_attentions_{layer}", 1280 >> (level - 1)) for level in range(1, 4) for layer in range(3)]
)


def modules():
    """kohya's name, inputs and outputs of every attention layer."""
    for block, channels in BLOCKS:
        for attention, context in (("attn1", channels), ("attn2", CONTEXT)):
            for layer, inputs in (("to_q", channels), ("to_k", context), ("to_v", context), ("to_out_0", channels)):
                yield f"lora_unet_{block}_transformer_blocks_0_{attention}_{layer}", inputs, channels


def write_base(folder):
    """The configurations of Stable Diffusion 1.5, without weights: all that names and shapes need."""
    unet = {
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": CONTEXT,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "downsample_padding": 1,
        "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-5, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }
    vae = {
        "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
        "norm_num_groups": 32, "out_channels": 3, "sample_size": 512, "up_block_types": ["UpDecoderBlock2D"] * 4,
    }
    text = {
        "architectures": ["CLIPTextModel"], "hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072,
        "layer_norm_eps": 1e-5, "max_position_embeddings": 77, "model_type": "clip_text_model",
        "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768, "vocab_size": 49408,
    }
    scheduler = {
        "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False,
        "skip_prk_steps": True, "trained_betas": None,
    }
    index = {
        "_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }
    files = {"model_index": index, "unet/config": unet, "vae/config": vae, "text_encoder/config": text,
             "scheduler/scheduler_config": scheduler}
    for name, content in files.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def write_adapter(path, layers, rank, seed, client):
    common, own = (np.random.default_rng([seed, part]) for part in (0, 1 + client))
    header, parts, end = {}, [], 0
    for name, inputs, outputs in layers:
        down = common.standard_normal((rank, inputs), np.float32) / np.float32(inputs**0.5)
        down += own.standard_normal((rank, inputs), np.float32) * np.float32(0.3 / inputs**0.5)
        up = own.standard_normal((outputs, rank), np.float32) * np.float32(0.01)
        up += common.standard_normal((outputs, rank), np.float32) * np.float32(0.01)
        for key, values in ((".alpha", np.float32(rank)), (".lora_down.weight", down), (".lora_up.weight", up)):
            header[name + key] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [end, end + values.nbytes]}
            parts.append(values.tobytes())
            end += values.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def read_adapter(path):
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header, data = json.loads(file.read(length)), file.read()
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] != "F32":
            raise SystemExit(f"{path}: `{name}` is {entry['dtype']}")
        start, end = entry["data_offsets"]
        yield name, np.frombuffer(data[start:end], np.float32).reshape(entry["shape"])


def weight(client):
    """Numbers of examples that differ."""
    return 1 + client % 7


def numpy_mean(args):
    """The weighted mean of every tensor, in f64, one file after the other."""
    total, sums = sum(map(weight, range(args.count))), {}
    for client in range(args.count):
        share = weight(client) / total
        for name, values in read_adapter(args.work / f"{client:05}.safetensors"):
            term = values.astype(np.float64) * share
            sums[name] = sums[name] + term if name in sums else term
    np.savez(args.work / "numpy.npz", **{name: sum.astype(np.float32) for name, sum in sums.items()})


def measured(command):
    """Standard output, seconds, and the most memory in MB."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{errors}")
    return output, time.monotonic() - start, usage.ru_maxrss * 1024 / 1e6


def check_fedavg(args):
    expected, found = np.load(args.work / "numpy.npz"), dict(read_adapter(args.work / "fedavg.safetensors"))
    worst = max(float(np.max(np.abs(found[name] - expected[name]))) for name in expected.files)
    largest = max(float(np.max(np.abs(expected[name]))) for name in expected.files)
    print(f"fedavg: largest difference from numpy {worst:.1e}, of values up to {largest:.2f}")


def check_product(args, layers):
    """How much further the result is from the mean of the updates than numpy's best of that rank, on two layers."""
    found, total = dict(read_adapter(args.work / "product.safetensors")), sum(map(weight, range(args.count)))
    for name, inputs, outputs in (layers[0], layers[len(layers) // 2]):
        mean = np.zeros((outputs, inputs))
        for client in range(args.count):
            own = {key: values for key, values in read_adapter(args.work / f"{client:05}.safetensors") if key.startswith(name + ".")}
            up, down = (own[f"{name}.lora_{part}.weight"].astype(np.float64) for part in ("up", "down"))
            mean += weight(client) / total * float(own[f"{name}.alpha"]) / args.rank * (up @ down)
        up, down = (found[f"{name}.lora_{part}.weight"].astype(np.float64) for part in ("up", "down"))
        update = float(found[f"{name}.alpha"]) / down.shape[0] * (up @ down)
        best = np.sqrt(np.sum(np.linalg.svd(mean, compute_uv=False)[args.rank:] ** 2))
        reached = np.linalg.norm(mean - update)
        print(f"product: {name} {outputs}x{inputs} is {reached / best - 1:+.1e} further from the mean than numpy's best")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=Path("target/release/catelier"))
    parser.add_argument("--work", type=Path, required=True, help="folder for the adapters; those that are there are kept")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--modules", type=int, help="only so many layers [default: all 128]")
    parser.add_argument("--strategies", nargs="*", default=["fedavg", "product", "median", "krum:100"])
    parser.add_argument("--numpy", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.numpy:
        return numpy_mean(args)

    layers = list(modules())[: args.modules]
    write_base(args.work / "base")
    for client in range(args.count):
        path = args.work / f"{client:05}.safetensors"
        if not path.exists():
            write_adapter(path, layers, args.rank, args.seed, client)
    size = (args.work / "00000.safetensors").stat().st_size
    replies = [{"client": f"client {client:05}", "file": f"{client:05}.safetensors", "weight": weight(client)} for client in range(args.count)]
    (args.work / "replies.json").write_text(json.dumps(replies))
    print(f"{args.count} adapters of {size / 1e6:.2f} MB, rank {args.rank}, {len(layers)} layers, seed {args.seed}")
    print(f"{'':<24}{'seconds':>9}{'peak MB':>9}  distance from the mean", flush=True)
    for strategy in args.strategies:
        out = args.work / f"{strategy.replace(':', '-')}.safetensors"
        command = [args.binary, "federate", "aggregate", "--base", args.work / "base", "--replies", args.work / "replies.json",
                   "--strategy", strategy, "--out", out, "--force", "--json"]
        output, seconds, peak = measured(command)
        print(f"{strategy:<24}{seconds:>9.1f}{peak:>9.0f}  {json.loads(output)['relative_distance']:.4f}", flush=True)
    _, seconds, peak = measured([sys.executable, __file__, "--numpy", "--work", args.work, "--seed", str(args.seed), "--count", str(args.count)])
    print(f"{'numpy, mean of factors':<24}{seconds:>9.1f}{peak:>9.0f}", flush=True)
    if "fedavg" in args.strategies:
        check_fedavg(args)
    if "product" in args.strategies:
        check_product(args, layers)


if __name__ == "__main__":
    main()

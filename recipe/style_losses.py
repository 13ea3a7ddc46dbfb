"""Values of the losses of style/src/losses.rs, computed by their definitions, sum by sum.

python3 recipe/style_losses.py --seed 7 > style/tests/golden/losses.json
"""

import argparse
import json
import math

import numpy as np


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def log_sum(values):
    return math.log(sum(math.exp(value) for value in values))


def prototype_cross_entropy(z, bank, labels, tau):
    losses = [log_sum([row @ p / tau for p in bank]) - row @ bank[label] / tau for row, label in zip(z, labels)]
    return sum(losses) / len(losses)


def alignment(z, targets):
    return sum(1 - row @ target for row, target in zip(z, targets)) / len(z)


def contrastive(z, labels, negatives, tau):
    losses = []
    for i, row in enumerate(z):
        positives = [j for j in range(len(z)) if j != i and labels[j] == labels[i]]
        if not positives:
            continue
        denominator = log_sum([row @ z[a] / tau for a in range(len(z)) if a != i] + [row @ n / tau for n in negatives])
        losses.append(-sum(row @ z[j] / tau - denominator for j in positives) / len(positives))
    return sum(losses) / len(losses)


def model_contrast(z, near, last, tau):
    losses = [log_sum([row @ g / tau, row @ p / tau]) - row @ g / tau for row, g, p in zip(z, near, last)]
    return sum(losses) / len(losses)


def prototype_distance(z, targets):
    return sum(((row - target) ** 2).sum() for row, target in zip(z, targets)) / len(z)


def proximal(w, start, mu):
    return mu / 2 * sum((a - b) ** 2 for a, b in zip(w.ravel(), start.ravel()))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=7)
    random = np.random.default_rng(parser.parse_args().seed)
    z, last, near = (unit(random.normal(size=(6, 4))) for _ in range(3))
    bank, negatives = unit(random.normal(size=(5, 4))), unit(random.normal(size=(3, 4)))
    labels = [0, 2, 0, 4, 2, 1]
    w, start = random.normal(size=(3, 4)), random.normal(size=(3, 4))
    values = {
        "prototype_cross_entropy": prototype_cross_entropy(z, bank, labels, 0.1),
        "alignment": alignment(z, bank[labels]),
        "contrastive": contrastive(z, labels, negatives, 0.1),
        "model_contrast": model_contrast(z, near, last, 0.5),
        "prototype_distance": prototype_distance(z, bank[labels]),
        "proximal": proximal(w, start, 0.3),
    }
    inputs = {"z": z, "last": last, "near": near, "bank": bank, "negatives": negatives, "w": w, "start": start}
    tensors = {name: value.tolist() for name, value in inputs.items()}
    print(json.dumps({"labels": labels, "inputs": tensors, "values": values}, indent=1))


if __name__ == "__main__":
    main()

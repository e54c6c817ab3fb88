"""CPU time of a transfer, beyond building the models: tracing both, planning, grafting.

    python tests/benchmarks/transfer_cost.py [--recipe hmt]

Ten pairs of timm architectures with random weights, in one process, next to the time it takes to build the two models.
"""

import argparse
import time
import warnings

import timm
import torch

from netgraft import plugins
from netgraft.graft import graft
from netgraft.models.model import load_model
from netgraft.plan import Plan
from netgraft.recipes.run import run_recipe
from netgraft.trace import trace

PAIRS = [
    ("resnet18", "resnet34"),
    ("resnet34", "resnet18"),
    ("resnet18", "mobilenetv3_small_100"),
    ("resnet50", "efficientnet_b0"),
    ("vgg11", "resnet18"),
    ("densenet121", "resnet50"),
    ("efficientnet_b0", "efficientnet_b1"),
    ("vit_tiny_patch16_224", "vit_small_patch16_224"),
    ("convnext_tiny", "resnet50"),
    ("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"),
]


def measure(source, target, recipe):
    models = [load_model(name, role="target") for name in (source, target)]
    start = time.process_time()
    states = [model.build().state_dict() for model in models]
    built = time.process_time()
    graphs = [trace(model) for model in models]
    traced = time.process_time()
    pairing, moves, kept = run_recipe(recipe, *graphs)
    plan = Plan(source, target, "", "", "", {}, pairing, tuple(moves), tuple(kept))
    planned = time.process_time()
    graft(plan, *states)
    return built - start, traced - built, planned - traced, time.process_time() - planned


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="grow")
    recipe = plugins.create("recipes", parser.parse_args().recipe, {})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    timm.create_model("resnet18")  # first-use costs of timm and torch
    print(f"{'pair':55} {'build':>7} {'trace':>7} {'plan':>7} {'graft':>7} {'sum without build':>18}   CPU s")
    for source, target in PAIRS:
        build, trace_, plan, graft_ = measure(source, target, recipe)
        total = trace_ + plan + graft_
        print(f"{source + ' -> ' + target:55} {build:7.2f} {trace_:7.2f} {plan:7.2f} {graft_:7.2f} {total:18.2f}")


if __name__ == "__main__":
    main()

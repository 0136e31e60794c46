"""A network of MONAI through all stages but the report, on 24 real cases: a row of `docs/results/networks.md`.

    python -m benchmarks.networks polyps UNet '{"channels": [16, 32, 64], "strides": [2, 2]}' --raw RAW/kvasir-seg

Needs the packages of `[test]`. The Dice after so few steps says that numbers come out, and nothing of how
good a network is.
"""

from __future__ import annotations

import json
import tempfile
import time
from math import prod
from pathlib import Path
from typing import Any

import click
from ruamel.yaml import YAML
from safetensors import safe_open

from benchmarks.mapo import EXAMPLES
from tests.fixtures.chain import run_chain

SPLITS = {"labelled": 12, "pool": 4, "validation": 3, "test": 5}


def parameters(data: str, network: str, arguments: dict[str, Any], raw: Path) -> dict[str, Any]:
    """The example's parameters with short trainings, one judge and one student."""
    example = Path(__file__).parent.parent / "examples" / f"{EXAMPLES[data]}.yaml"
    params: dict[str, Any] = YAML(typ="safe").load(example)
    flat = data == "polyps"
    params["data"]["path"] = str(raw.resolve())
    if flat:
        params["preprocess"]["resize"] = [64, 64]
    params["splits"] = SPLITS
    params["base"] = {
        "network": {"name": network, "arguments": arguments},
        "optimisation": {"steps": 20, "learning_rate": 1e-3, "evaluate_every": 20},
        "batch": 4 if flat else 2,
        "members": 0,
    }
    params["propose"] = {
        "imports": params["propose"]["imports"],
        "samplers": {
            "dropout": {"kind": "mc_dropout", "rates": [0.3, 0.6], "at": "bottleneck"},
            "thresholds": {"kind": "threshold", "thresholds": [0.3, 0.7]},
        },
    }
    params["judges"], params["consensus"] = {"agreement": {"kind": "agreement"}}, {}
    # A judge of such networks may be worse than a coin, and this is not about the judge.
    strategy = {"kind": "top_bottom", "min_p_correct": 0.0}
    params["pairs"] = {
        "none": {"judge": "none", "strategy": {"kind": "none"}},
        "agreement": {"judge": "agreement", "strategy": strategy},
    }
    params["students"] = {
        "rn_dpo": {"pairs": "agreement", "objective": {"kind": "preference"}, "anchor": {"supervised": 1.0}}
    }
    images = 2 if flat else 1
    params["training"] = {
        "optimisation": {"steps": 6, "learning_rate": 1e-4, "evaluate_every": 6},
        "images": images,
        "labelled": images,
    }
    params["execution"] = {"scheduler": "synchronous", "workers": 1, "progress": "none"}
    return params


@click.command(help=__doc__)
@click.argument("data", type=click.Choice(list(EXAMPLES)))
@click.argument("network")
@click.argument("arguments", default="{}")
@click.option("--raw", type=click.Path(path_type=Path), required=True, help="The data set's folder.")
def main(data: str, network: str, arguments: str, raw: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        run_chain(folder, parameters(data, network, json.loads(arguments), raw), skip=("report",))
        seconds = time.perf_counter() - start
        window = json.loads((folder / "models/base/network.json").read_text())["window"]
        with safe_open(folder / "models/base/base.safetensors", "numpy") as weights:
            count = sum(prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
        dice = [100 * json.loads((folder / f"metrics/{arm}.json").read_text())["dice"] for arm in ("base", "rn_dpo")]
    shown = "x".join(map(str, window))
    click.echo(f"| {network} | {data} | {count:,} | {shown} | {seconds:.0f} s | {dice[0]:.1f} | {dice[1]:.1f} |")


if __name__ == "__main__":
    main()

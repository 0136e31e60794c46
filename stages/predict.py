"""Trained model and new images -> masks with grid, spacing and orientation of each image; needs no params.yaml."""

from pathlib import Path

import click

from stages import FOLDER, guarded, say


@click.command(help=__doc__)
@click.argument("model", type=FOLDER)
@click.argument("images", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("--weights", help="Name of the weights in MODEL.  [default: last of a student, base of a base]")
@click.option("--probabilities", is_flag=True, help="Write class probabilities too, to OUT/probability.")
@click.option("--trust", is_flag=True, help="Allow a program, which runs code that is in its file.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(["float32", "tf32", "bfloat16"]), default="float32", show_default=True)
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Number of images in work at a time."
)
@click.option("--scheduler", type=click.Choice(["synchronous", "threads", "processes"]), default="threads")
@click.option("--progress", type=click.Choice(["auto", "bar", "lines", "none"]), default="auto", show_default=True)
@guarded
def main(
    model: Path,
    images: Path,
    out: Path,
    weights: str | None,
    probabilities: bool,
    trust: bool,
    device: str,
    **knobs: str | int,
) -> None:
    from pipeline.compute import Compute
    from pipeline.execution import Execution
    from pipeline.exports.predict import apply_model, ready_model

    compute = Compute.model_validate({"device": device, "precision": knobs.pop("precision")})
    execution = Execution.model_validate(knobs)
    found = ready_model(model, weights)
    total, before = apply_model(found, images, out, compute, execution, probabilities, trust)
    say("predict", f"{total} masks in {out}" + (f", {before} of them from before" if before else ""))


if __name__ == "__main__":
    main()

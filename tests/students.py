"""A small data set with proposals and a raw base, and students trained on it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline import schema
from pipeline.arm import Anchor, Student, Training
from pipeline.augmentation import Augmentation
from pipeline.dataset import CaseStore, ProposalStore
from pipeline.recipe import RECORD, Compute, Network, Optimisation
from pipeline.segmenter import Architecture, Model, save_weights
from pipeline.sliding import predict
from pipeline.store import write_table
from pipeline.student import train_student
from tests.builders import case_store, proposal_store
from tests.networks import noise
from tests.phantoms import disc

NETWORK = Network(name="UNet", arguments={"channels": [4, 8], "strides": [2]}, multiple=2)
SPACE = (8, 8)
SPLITS = ["labelled", "labelled", "pool", "pool", "validation"]
PLAIN = Augmentation(flips=(), rotate_degrees=0, scale=0, intensity=0, noise=0)
STEPS = {"learning_rate": 1e-9, "schedule": "constant", "weight_decay": 0.0}


@dataclass
class Setting:
    """A small data set of discs in noise with proposals disc, its complement and a larger disc, and a raw base."""

    cases: CaseStore
    proposals: ProposalStore
    base: Model
    folder: Path

    def pairs(self, *rows: tuple[int, int, int], p_correct: float | None = None) -> Path:
        """A pair set of (case, chosen, rejected); |D| is read from the proposals."""
        path = self.folder / "pairs" / "mined.parquet"
        frame = pl.DataFrame(
            [
                {
                    "case_id": f"c{case}",
                    "case": case,
                    "chosen": chosen,
                    "rejected": rejected,
                    "chosen_score": 1.0,
                    "rejected_score": 0.5,
                    "margin": 0.5,
                    "p_correct": p_correct,
                    "disagreement": int(self.proposals.disagreement(self.cases.all[case])[chosen, rejected]),
                    "chosen_sampler": "s",
                    "rejected_sampler": "s",
                    "judge": "oracle",
                    "strategy": "top_bottom",
                }
                for case, chosen, rejected in rows
            ],
            schema=schema.PAIRS.columns,
        )
        write_table(frame, schema.PAIRS, path, "a test")
        return path

    def train(
        self,
        objective: Any,
        pairs: Sequence[tuple[int, int, int]] = ((2, 0, 1), (3, 0, 1)),
        anchor: Anchor | None = None,
        augmentation: Augmentation = PLAIN,
        out: str = "student",
        steps: int = 2,
        every: int = 1,
        student: dict[str, Any] | None = None,
        p_correct: float | None = None,
        **more: Any,
    ) -> list[dict[str, float | None]]:
        """The history of a student with these pairs."""
        optimisation = Optimisation(**{**STEPS, **more, "steps": steps, "evaluate_every": every})
        train_student(
            "tried",
            Student(pairs="mined", objective=objective, anchor=anchor, **(student or {})),
            self.cases,
            self.proposals,
            self.pairs(*pairs, p_correct=p_correct),
            self.base,
            Training(optimisation=optimisation, images=2, labelled=2),
            augmentation,
            Compute(),
            0,
            self.folder / out,
            self.folder / f"{out}.csv",
        )
        with (self.folder / f"{out}.csv").open() as file:
            rows = [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]
        return rows

    def record(self, out: str = "student") -> dict[str, Any]:
        return json.loads((self.folder / out / RECORD).read_text())

    def predicted(self, name: str, case: int, out: str = "student") -> np.ndarray:
        network = Model(self.folder / out, name).load()
        logits = predict(network, self.cases.image(self.cases.all[case]), SPACE, Compute())
        return logits.argmax(0).numpy().astype(np.uint8)


def made(folder: Path, without_label: Sequence[int] = (), groups: Sequence[str] | None = None) -> Setting:
    truths = [disc(SPACE, 2 + 0.5 * (i % 3)) for i in range(5)]
    images = [(truth + 0.3 * noise(SPACE, f"c{i}")[0])[None].astype(np.float32) for i, truth in enumerate(truths)]
    cases = case_store(
        folder / "cases",
        [None if i in without_label else t for i, t in enumerate(truths)],
        SPLITS,
        images,
        SPACE,
        groups=groups,
    )
    masks = [np.stack([t, 1 - t, disc(SPACE, 4)]) for t in truths]
    base = folder / "base"
    architecture = Architecture.of(NETWORK, 1, 2, SPACE)
    architecture.save(base)
    save_weights(architecture.build(5), base / "base.safetensors")
    return Setting(cases, proposal_store(folder / "proposals", masks), Model(base), folder)

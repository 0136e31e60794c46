"""Links of a preference loss: one file per kind, and the union `Link` that lists the kinds.

Torch is imported inside functions, so that reading `params.yaml` stays fast.
"""

from typing import Annotated

from pipeline.own_kinds import Family
from pipeline.students.links.cdpo import ConservativeDPO
from pipeline.students.links.hinge import Hinge
from pipeline.students.links.ipo import IPO
from pipeline.students.links.robust import RobustDPO
from pipeline.students.links.sigmoid import Sigmoid

Link = Annotated[Sigmoid | ConservativeDPO | RobustDPO | IPO | Hinge, Family("link", ("aimed_shift",))]
"""Every member is a `LossOfMargin`."""

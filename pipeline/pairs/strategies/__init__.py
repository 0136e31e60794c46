"""Mining strategies: one file per kind, and the union `Strategy` that lists the kinds."""

from typing import Annotated

from pipeline.own_kinds import Family
from pipeline.pairs.strategies.all_pairs import AllPairs
from pipeline.pairs.strategies.none import NoPairs
from pipeline.pairs.strategies.random import Random
from pipeline.pairs.strategies.reviewed import Reviewed
from pipeline.pairs.strategies.strategy import StrategyKnobs
from pipeline.pairs.strategies.top_base import TopBase
from pipeline.pairs.strategies.top_bottom import TopBottom
from pipeline.pairs.strategies.top_quantile import TopQuantile
from pipeline.pairs.strategies.top_random import TopRandom

Mined = TopBottom | TopBase | TopRandom | TopQuantile | Random | AllPairs
"""Strategies that order masks by the scores of a judge: all kinds but `none` and `reviewed`."""

Strategy = Annotated[
    TopBottom | TopBase | TopRandom | TopQuantile | Random | AllPairs | Reviewed | NoPairs,
    Family("strategy", StrategyKnobs),
]

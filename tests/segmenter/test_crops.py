"""Where cases larger than the window are cut."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.seeding import numpy_generator
from pipeline.segmenter.crops import Spots, anywhere, around


@pytest.mark.parametrize(
    ("centre", "expected"), [((5, 5), ((3, 7), (0, 3))), ((0, 0), ((0, 4), (0, 3))), ((9, 2), ((6, 10), (0, 3)))]
)
def test_a_box_lies_inside_the_case(centre, expected):
    """10x3 under a window of 4x4: rows from two before the centre, moved inside; all columns."""
    assert tuple((part.start, part.stop) for part in around(centre, (10, 3), (4, 4))) == expected


def test_boxes_from_anywhere_reach_both_ends():
    generator = numpy_generator("anywhere")
    starts = {anywhere((6, 9), (4, 9), generator)[0].start for _ in range(60)}
    assert starts == {0, 1, 2}


@pytest.mark.parametrize("space", [(300, 10), (70, 3, 66)])
def test_every_wanted_voxel_is_drawn_equally_often(space):
    """Voxels in several blocks (of 256 pixels, or 64 voxels): each of the 5 between 140 and 260 times of 1000, which is
    4.7 standard deviations of 12.6 around 200; no other voxel ever."""
    wanted = np.zeros(space, bool)
    rng = numpy_generator("spots")
    places = [tuple(int(rng.integers(length)) for length in space) for _ in range(3)]
    places += [tuple(length - 1 for length in space), (0,) * len(space)]
    wanted[tuple(np.array(places).T)] = True
    spots = Spots(space, lambda where: wanted[where])
    assert spots.total == 5
    drawn = [tuple(spots.draw(rng) or ()) for _ in range(1000)]
    assert set(drawn) == set(places)
    assert all(140 <= drawn.count(place) <= 260 for place in places)


def test_nothing_wanted_is_nothing_drawn():
    assert Spots((5, 5), lambda where: np.zeros((5, 5), bool)[where]).draw(numpy_generator("none")) is None


def test_a_draw_reads_one_block():
    """300 pixels are two blocks of 256 and 44: counting reads both, a draw the one that its voxel lies in."""
    wanted = np.zeros((1, 300), bool)
    wanted[0, 290] = True
    read = []

    def inside(where):
        read.append(where[1])
        return wanted[where]

    spots = Spots((1, 300), inside)
    assert [part.start for part in read] == [0, 256]
    assert spots.draw(numpy_generator("read")) == [0, 290]
    assert [part.start for part in read] == [0, 256, 256]

"""Stage `report`: one self-contained page with all measurements of a run, and the comparison of several runs."""

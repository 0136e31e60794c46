"""Speed and size against the budgets, as ratios side by side in one run: `python -m benchmarks.NAME`."""

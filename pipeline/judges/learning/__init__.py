"""What learned judges share: training masks with known Dice, features and networks."""

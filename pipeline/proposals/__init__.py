"""Stage `propose`: several proposals per case, drawn by samplers from trained models and imported masks."""

"""Stage `propose`: several masks for every case."""

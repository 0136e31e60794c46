"""Inputs with a fault, and odd inputs without one, of every kind that users bring."""

"""Offline preference datasets for medical image segmentation: the library behind the stages."""

__version__ = "0.1.0"

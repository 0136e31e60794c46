"""Reading, checking and writing of image and mask files: NIfTI, pictures and TIFF."""

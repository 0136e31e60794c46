"""Reading, checking and writing of image and mask files: NIfTI, NRRD, MetaImage, pictures and TIFF."""

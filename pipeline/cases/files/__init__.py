"""Files of images and masks: NIfTI, pictures and TIFF are read, checked and written here."""

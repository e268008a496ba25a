"""Files as others write them: annotations, calibration, images, video."""

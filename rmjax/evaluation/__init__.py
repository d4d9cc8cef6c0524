"""What a reward model is worth: accuracy, calibration, length bias."""

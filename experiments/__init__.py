"""Programs, one file each: `python -m experiments.<program> --config=configs/<system>.py`."""

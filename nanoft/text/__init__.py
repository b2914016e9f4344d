"""Other tokenizers, and what every data/NAME/prepare.py shares."""

"""One module for each command; tree.py imports a module when its command is called."""

"""The drill room: what a restored copy is put through, to prove that it is good."""

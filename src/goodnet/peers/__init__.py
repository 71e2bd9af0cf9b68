"""Other programs of the field behind one interface, each in a process of its own, for `goodnet bench peers`.

A program's own packages are imported in its adapter's file alone, inside the process that runs it (`child`), with the
Python of its own environment (`make peers`). It is given the defender's images and, without labels, the images that it
is measured on; it gives back a verdict and answers, and whoever asked judges them.
"""

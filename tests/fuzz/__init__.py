"""Mutated files for every reader. A reader gives what it reads or one named error, whatever the bytes.

`seeds` makes whole files by the libraries that write them, `mutate` and `structure` damage them, `targets` read them,
`worker` does so in a process of its own and watches it, `drive` starts workers and counts. From the command line:
`python -m tests.fuzz --target onnx --inputs 100000 --seed 0` in the checkout's root.
"""

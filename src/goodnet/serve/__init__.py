"""A local page for the whole job: drop a model and clean images, watch the scan, repair, take the GoodNet home.

The server reads no model, no image and no picture: each job has a folder and a process of its own (`worker`), and what
the page shows comes from the records that it leaves there.
"""

"""What more than one notebook of the course needs; every idea here is first taught in a notebook.

The way data flows, and the module that holds each step:

    assets, squad -> dataset -> negatives -> training -> retrieval -> evaluation -> report

with `profiles`, `encoder` and `loss` at the heart of training, and `parameters` and `run` around papermill.
"""

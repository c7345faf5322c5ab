"""Random batches through every way of the backends, each judged against float64: ``python -m benchmarks.fuzz``.

`cases` describes a batch by a seed and a number, `inputs` makes its tensors, `ways` sends it where it should go,
`oracle` says what is right and how far off a result may be, `campaign` runs batches and counts.
"""

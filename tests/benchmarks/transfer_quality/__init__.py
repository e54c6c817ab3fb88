"""Do transfers help? Fine-tuned accuracy of every initialisation, on tasks that fit into minutes.

    python tests/benchmarks/transfer_quality run --inits scratch hmt upper --samples 10
    python tests/benchmarks/transfer_quality report

Two domains. *glyphs*: sources read letters drawn from installed fonts, targets learn scikit-learn's handwritten digits
under a fixed distortion (``netgraft:digits-hard``), 16x16 grey. *scenes*: sources name shape and texture of rendered
objects, targets learn which of ten real photographs a patch is from, 32x32 RGB; there to show what is tuned to strokes.

A cell is (domain, source, target, initialisation, images per class, seed). The seed draws the training images, the
head and the order of the batches, the same for every initialisation. Training is the same for all too: SGD, momentum
0.9, cosine from 0.03, weight decay 5e-4, 20 epochs in batches of 20. Each cell is one line of ``cells.jsonl`` in the
cache folder, written as soon as it is known; what is there is not run again unless the initialisation's bytes changed.

An initialisation is written ``RECIPE[:OPTION=VALUE,...][@CONTROL]``: any of netgraft's recipes, or ``scratch`` (the
target's own), or ``upper`` (the target pretrained on the source's task as long as the source was: the upper bound).
``mimetic`` and ``structured`` make attention alone and read no source: they run once for each target, and refuse those
without attention. The controls: ``@shuffled`` permutes each of the source's tensors, ``@untrained`` takes the source's
random weights.
"""

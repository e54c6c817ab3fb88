"""Transfer without training a network: maps of features and boosted learners, one class per file, in NumPy.

They take features ``[images, width]`` as arrays, such as what a frozen network's classifier reads, of the source's and
the target's images. The maps have ``fit`` and ``transform``; the boosted learners ``fit`` and ``predict`` over any
estimator with scikit-learn's protocol: ``fit(x, y, sample_weight=w)`` and ``predict(x)``.
"""

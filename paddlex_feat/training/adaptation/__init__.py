"""Adaptation: an affine map of a network's features, fitted to the training images in seconds.

statistics  what the closed forms need of the training features: `ClassStatistics`
maps        the maps and their closed forms: `AffineMap`, `Family`
choose      cross-validation over classes: which map, if any, is better than none
fold        a map put into the network's own tensors
record      adaptation.npz, the map beside the weights

Everything here is NumPy on arrays of features; `modes.train_adapt` composes it.
"""

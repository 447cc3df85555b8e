"""Sparse autoencoder experiments from the shell.

Shape suffixes used in every tensor name of the package:

    B rows of a batch    D model width      F latents      K members of a stack
    T tokens of a context  V vocabulary     C contexts     N rows, any number
    G true features

``W_dec_KFD`` is a decoder of K members with F rows (directions) of width D.
"""

__version__ = "0.1.0"
